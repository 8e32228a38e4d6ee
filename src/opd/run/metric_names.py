"""Every name that a run logs, for metrics.jsonl, timings.jsonl and the evaluations.

docs/metrics.md has one row per name; tests compare the page, this list and the source.
"""

FULL = (  # need both whole distributions
    "diag/student_entropy",
    "diag/teacher_entropy",
    "diag/entropy_gap_abs",
    "diag/reverse_kl",
    "diag/forward_kl",
    "diag/teacher_support_mass",
    "verl/student_mass",
)
OVERLAP = (  # exact from both top-k lists
    "diag/overlap_ratio",
    "diag/top1_agreement",
    "diag/overlap_advantage",
    "diag/overlap_mass_student",
    "diag/overlap_mass_teacher",
    "diag/support_mass",
    "diag/extreme_advantage_diff",
    "reference/overlap_advantage",
    "reference/overlap_mass_student",
    "reference/overlap_mass_teacher",
    "verl/overlap_token_advantage",
    "verl/teacher_mass",
)
SAMPLED = ("diag/token_reward",)  # needs the sampled token's two log-probs
LOSS = ("diag/loss_teacher_mass",)  # of a loss renormalised on the student's top k alone
BOUNDS = (  # what top-k lists imply for quantities of the whole vocabulary
    "bound/teacher_support_mass_lower",
    "bound/teacher_support_mass_upper",
    "bound/reverse_kl_lower",
    "bound/forward_kl_lower",
    "bound/teacher_entropy_lower",
)
HORIZON = (  # with a `horizon` section: limited or down-weighted rollouts
    "horizon/limit",
    "horizon/cut",
    "horizon/spared_at_most",
    "horizon/weight",
    "horizon/reach",
)
DERIVED = (  # from a step's sums
    "diag/entropy_gap_mean",
    "diag/gradient_share",  # by position bin alone: over all positions it is 1
)
DRIFT = ("drift/logp_gap", "drift/ratio", "drift/ratio_squared", "drift/ess")
AHEAD = ("ahead/weight", "ahead/clipped", "ahead/ess", "ahead/steps")  # rollouts a step older
LOOP = (  # logged by the training loop, the sampler and the evaluation
    "train/loss",
    "train/grad_norm",
    "train/tokens",
    "train/lr",
    "train/sft_loss",
    "train/refused",
    "rollout/length",
    "rollout/truncated",
    "rollout/repetition",
    "rollout/entropy",
    "rollout/reward",
    "rollout/hint_quoted",
    "rollout/distinct",
    "eval/<set>/accuracy",
    "eval/<set>/accuracy_low",
    "eval/<set>/accuracy_high",
    "eval/<set>/pass@<k>",
    "eval/<set>/length",
    "eval/<set>/truncated",
    "eval/<set>/response_entropy",
)
TEACHERS = (  # each of several teachers on its own prompts
    "teachers/<teacher>/token_share",
    "teachers/<teacher>/<metric>",
    "teachers/<teacher>/eval/<set>/<metric>",
)
ALIGN = (  # a teacher of another tokenizer
    "align/shared",
    "align/left_out",
    "align/chunk_length",
    "align/advantage",
)
COLDSTART = (  # logged by a cold start
    "coldstart/step",
    "coldstart/loss",
    "coldstart/grad_norm",
    "coldstart/overlap_mass_student",
    "coldstart/top1_agreement",
    "coldstart/tokens",
    "coldstart/completions",
    "coldstart/left_out",
)
CLOCK = (  # timings.jsonl
    "time/<phase>_s",
    "time/step_s",
    "time/tokens_per_s",
    "memory/peak_rss_mib",
    "memory/peak_device_mib",
    "teacher/requests",
    "teacher/retries",
    "teacher/checked",
    "teacher/bytes_sent_per_token",
    "teacher/bytes_received_per_token",
    "teacher/cache_hits",
    "teacher/quantisation_kl",
)
POSITIONAL = (  # also logged by position bin
    "diag/overlap_ratio",
    "diag/overlap_advantage",
    "diag/overlap_mass_student",
    "diag/overlap_mass_teacher",
    "diag/student_entropy",
    "diag/teacher_entropy",
    "diag/entropy_gap_abs",
    "diag/reverse_kl",
)
BINNED = ("<name>@pos<first>-<last>", "<name>@rel<from>-<to>")
METRICS = (
    *(FULL + OVERLAP + SAMPLED + LOSS + BOUNDS + DERIVED + DRIFT + AHEAD),
    *(LOOP + HORIZON + TEACHERS + ALIGN + COLDSTART + CLOCK + BINNED),
)
"""Every name that may be logged; `<...>` stands for a part that varies."""
