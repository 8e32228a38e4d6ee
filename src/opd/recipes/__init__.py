"""The procedures of the paper, each a function of student, teacher and prompts."""
