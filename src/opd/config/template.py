"""The commented run.yaml that `opd init` writes: what a first run sets, on one screen."""

RUN_YAML = """\
# One file describes a run. What is not named here has a default: docs/config.md lists every key.
student:
  model: path/to/student            # Hugging Face folder, or hub name (owner/name@revision)
  lora: null                        # null: train every weight; or {rank: 16, alpha: 32}

teacher:
  model: path/to/teacher            # must share the student's tokenizer; a server: add url

prompts:
  path: data/train.jsonl            # rows with `prompt` or `problem`, and `answer` if there is one
  template: null                    # e.g. "{problem} Please reason step by step."
  chat: {}                          # chat template keywords; null sends plain text (base models)

rollout:
  n: 4                              # responses per prompt
  max_new_tokens: 1024              # the cost driver; the paper found 3K-7K best for long reasoning

loss:
  support: student_topk             # compare on the student's k most probable tokens ...
  k: 16                             # ... renormalised on both sides: reverse KL, Eq. 5 of the paper

coldstart: null                     # {}: imitate the teacher first; `opd check` says if it helps

optim:
  lr: 1.0e-6                        # 1.5B-7B models; about 1e-4 with LoRA, 1e-3 for tiny models

train:
  steps: 200
  prompts_per_step: 64              # one update per step, on 64 x 4 responses

eval:                               # held out, with answers; the second shows what is forgotten
  - {path: data/heldout.jsonl, every: 20}
  - {path: data/other-skill.jsonl, every: 0}

alarms:
  action: warn                      # off | warn | act | stop (and keep the best student)

output:
  dir: runs/first
"""
