"""What `opd` without arguments shows."""

FIRST_COMMANDS = """On-policy distillation. The four commands one needs first:

  opd demo             a tiny shipped pair, in two minutes
  opd init run.yaml    a configuration to fill in
  opd check run.yaml   will the teacher help, at what cost?
  opd train run.yaml   train, and write a report

All commands: opd --help. Options: opd COMMAND --help."""
