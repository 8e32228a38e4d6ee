"""The commented run.yaml that `opd init` writes."""

RUN_YAML = """\
# One file describes a run. Every key not named here has a default; docs/config.md lists them all.
student:
  model: path/to/student            # local Hugging Face folder, or a hub name
  precision: auto                   # bf16 with float32 masters on a GPU, float32 on a CPU
  lora: null                        # or {rank: 16, alpha: 32}
  gradient_checkpointing: false     # true trades time for memory

teacher:
  model: path/to/teacher            # must share the student's tokenizer
  dtype: auto                       # as stored

prompts:
  path: data/train.jsonl            # rows with `prompt` or `problem`, and `answer` if there is one
  template: null                    # e.g. "{problem} Please reason step by step."
  chat: {}                          # chat template keywords, e.g. {enable_thinking: false}
  max_tokens: 1024                  # longer prompts are dropped and counted

rollout:
  n: 4                              # responses a prompt
  max_new_tokens: 1024              # the cost driver; the paper found 3K-7K best for long reasoning
  temperature: 1.0                  # samples must come from the student itself
  stop: null                        # student | teacher | union, needed only if end tokens differ

loss:
  divergence: reverse_kl
  support: student_topk             # the student's own k most probable tokens ...
  k: 16                             # ... and on these both sides are renormalised (Eq. 5)
  mode: paper                       # paper | reference | tail

coldstart: null                     # {}: imitate the teacher first, if the two overlap too little

optim:
  lr: 1.0e-6                        # 1.5B-7B models; about 1e-4 with LoRA, 1e-3 for tiny models
  grad_clip: 1.0

train:
  steps: 200
  prompts_per_step: 64
  tokens_per_microbatch: auto       # memory only; the update is the same
  seed: 0

eval:                               # held out, with answers; the second shows what is forgotten
  - {path: data/heldout.jsonl, n: 4, temperature: 0.7, top_p: 0.95, every: 20}
  - {path: data/other-skill.jsonl, n: 4, every: 0}

horizon: null                       # or {cap: 512}, {grow: {start: 128, until: 100}}, {prune: {}}

alarms:
  action: warn                      # off | warn | act | stop (and keep the best student)

output:
  dir: runs/first
  save_every: 20
  keep: 2
  trackers: []                      # tensorboard | wandb | trackio
"""
