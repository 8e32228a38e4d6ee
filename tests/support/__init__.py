"""Parts that several test modules use: doubles of disks and servers, builders, checks."""
