"""What `opd` without arguments shows."""

FIRST_COMMANDS = """On-policy distillation. The four commands one needs first:

  opd demo             the whole story on a tiny shipped pair: two minutes, no GPU, no network
  opd init run.yaml    a commented configuration for your own student, teacher and prompts
  opd check run.yaml   will this teacher help this student, and what would the run cost?
  opd train run.yaml   train; ends with a report in the run folder

All commands: opd --help. Options and arguments of one: opd COMMAND --help."""
