"""What a run does: the loop, one step of it, what may change its course, and several processes."""
