"""Every key of run.yaml with a value that is not its default, and what shows that it is used.

One entry is one key: overrides of the base run (`support.every_key.BASE`), or of a base with
further overrides in which the key can matter. What must follow:

- `metric:NAME`: the values of that metric in metrics.jsonl differ from the base's, or it is new or
  gone; a name that ends in `*` stands for all that begin so.
- `weights`: the final student differs.  `file:GLOB`: what matches in the run folder differs.
- `says:TEXT`: it is printed, and the base prints it not.  `refuses:TEXT`: exit code 2 with it.
- `state:NAME`: what the start resolved to (`support.every_key.STATES`) differs.
- `output:GLOB`: what matches beside run.yaml differs; for commands other than train.
- `test:FILE::NAME`: it needs a server, a GPU or code of one's own; that test is about it.
"""

# ruff: noqa: E501 - one line is one key
# fmt: off

from __future__ import annotations

from typing import NamedTuple


class Effect(NamedTuple):
    """A key and what its value does.

    Attributes:
        key: of `opd.config.settable_keys`.
        change: overrides that set it, separated by ` ; `.
        shows: see above.
        base: overrides of the run that it is compared with, separated by ` ; `.
        command: words before run.yaml.
        quick: it is tried with every `make test`.
    """

    key: str
    change: str
    shows: str
    base: str = ""
    command: str = "train"
    quick: bool = False


LORA, SELF = "student.lora={}", "teacher={from: student, prompt: '{prompt} {answer}'}"
JSD, TOP = "loss.divergence=jsd", "loss.support=sampled"
FILES = "prompts={files: [{path: train.jsonl, teacher: a}, {path: more.jsonl, teacher: b}]}"
TWO = f"teacher=null ; teachers={{a: {{model: teacher}}, b: {{model: student}}}} ; {FILES}"
ONE = "prompts={files: [{path: train.jsonl}, {path: more.jsonl}]}"
# Rounds of four completions long enough to end, of nine prompts; mass 1 is out of reach.
LONG = "rollout.max_new_tokens=24"
BEFORE = f"prompts.path=many.jsonl ; {LONG}"
COLD = f"coldstart={{completions_per_round: 4, max_rounds: 2, answer: ignore, mass: 1}} ; {BEFORE}"
FORMAL = "student.model=teacher ; prompts.path=formal.jsonl"  # answers 8.0, and a student who knows
EXAMPLES = "loss.terms.sft_weight=1 ; loss.terms.sft_path=examples.jsonl"
EXTRAPOLATED = "loss.terms.reward_scale=1.25 ; loss.terms.reference=student"
SELECT = f"select={{output: chosen.jsonl, n: 4}} ; {BEFORE}"
SERVED, LAUNCH = "tests/teachers/test_served_run.py::", "tests/setup/test_launch.py::"
OWN = "tests/test_own_objects.py::test_a_run_with_sampler_tracker_and_alarm_by_dotted_path"
OFFLINE = SERVED + "test_scores_made_ahead_train_like_a_teacher_that_is_there"

EFFECTS = [
    Effect("student.model", "student.model=teacher", "metric:diag/student_entropy"),
    Effect("student.precision", "student.precision=float64", "metric:diag/reverse_kl"),
    Effect("student.lora", LORA, "file:final/adapter*"),
    Effect("student.lora.rank", "student.lora.rank=4", "metric:train/grad_norm", LORA),
    Effect("student.lora.alpha", "student.lora.alpha=64", "metric:train/grad_norm", LORA),
    Effect("student.lora.target_modules", "student.lora.target_modules=[q_proj]", "metric:train/grad_norm", LORA),
    Effect("student.lora.weights", "student.lora.weights=int8", "metric:diag/reverse_kl", LORA),
    Effect("student.gradient_checkpointing", "student.gradient_checkpointing=true", "state:checkpointing"),
    Effect("student.shard", "student.shard=fsdp2", "says:student.shard=fsdp2 shards nothing"),
    Effect("teacher", "teacher=null", "metric:diag/reverse_kl", "loss.terms.outcome_weight=1"),
    Effect("teacher.model", "teacher.model=student", "metric:diag/reverse_kl"),
    Effect("teacher.dtype", "teacher.dtype=int8", "metric:diag/reverse_kl"),
    Effect("teacher.device", "teacher.device=cuda:7", "refuses:teacher.device", quick=True),
    Effect("teacher.offload", "teacher.offload=disk", "test:tests/models/test_quantised.py::test_a_run_with_an_offloaded_teacher_is_the_same_run"),
    Effect("teacher.cache", "", f"test:{OFFLINE}"),
    Effect("teacher.cache.dir", "", f"test:{SERVED}test_a_cache_pays_for_nothing_twice"),
    Effect("teacher.cache.max_gb", "",
           "test:tests/teachers/test_cache.py::test_the_size_that_a_run_gives_bounds_its_cache"),
    Effect("teacher.cache.offline", "", f"test:{OFFLINE}"),
    Effect("teacher.tokenizer", "teacher.tokenizer=teacher", "metric:*"),
    Effect("teacher.prompt", "teacher.prompt='{prompt} {answer}'", "metric:diag/reverse_kl"),
    Effect("teacher.url", "", f"test:{SERVED}test_a_cache_pays_for_nothing_twice"),
    Effect("teacher.launch", "", f"test:{LAUNCH}test_options_of_adapters_temperatures_and_a_teacher"),
    Effect("teacher.launch.python", "", f"test:{LAUNCH}test_a_server_gets_what_the_run_needs_and_ends_with_it"),
    Effect("teacher.launch.gpus", "", f"test:{LAUNCH}test_who_sits_on_which_gpu"),
    Effect("teacher.launch.args", "", f"test:{LAUNCH}test_options_of_adapters_temperatures_and_a_teacher"),
    Effect("teacher.api_key_env", "", "test:tests/teachers/test_http.py::test_a_key_comes_from_the_environment"),
    Effect("teacher.patience", "", f"test:{SERVED}test_a_teacher_that_goes_away_and_comes_back_changes_nothing"),
    Effect("teacher.from", SELF, "metric:diag/reverse_kl"),
    Effect("teacher.weights", "teacher.weights=live", "metric:diag/reverse_kl", SELF),
    Effect("teacher.decay", "teacher.decay=0.5", "metric:diag/reverse_kl", SELF + " ; teacher.weights=ema"),
    Effect("teacher.python", "", f"test:{OWN}"),
    Effect("teachers", "teachers.b.model=teacher", "metric:diag/reverse_kl", TWO),
    Effect("prompts.path", "prompts.path=more.jsonl", "metric:diag/reverse_kl"),
    Effect("prompts.files", ONE, "metric:diag/reverse_kl"),
    Effect("prompts.files.path", "prompts.files.1.path=formal.jsonl", "metric:rollout/reward", ONE),
    Effect("prompts.files.teacher", "prompts.files.1.teacher=a ; prompts.files.0.teacher=b", "metric:diag/reverse_kl", TWO),
    Effect("prompts.files.weight", "prompts.files.1.weight=9", "metric:diag/reverse_kl", ONE),
    Effect("prompts.by", "prompts.by=tokens", "metric:train/grad_norm", f"{TWO} ; {LONG}"),
    Effect("prompts.template", "prompts.template='sum elk {problem}'", "metric:diag/reverse_kl"),
    Effect("prompts.chat", "prompts.chat=null", "metric:diag/reverse_kl"),
    Effect("prompts.teacher_template", "", "test:tests/mistakes/test_silence.py::test_a_student_without_a_template_beside_a_teacher_with_one_is_a_choice"),
    Effect("prompts.max_tokens", "prompts.max_tokens=6", "says:prompts are longer than they may be"),
    Effect("prompts.shuffle", "prompts.shuffle=false", "metric:diag/reverse_kl"),
    Effect("prompts.grader", "prompts.grader=exact", "metric:rollout/reward", FORMAL),
    Effect("rollout.url", "", "test:tests/samplers/test_weight_sync.py::test_full_weights_are_reloaded_labelled_and_the_prefix_cache_forgotten"),
    Effect("rollout.launch", "", f"test:{LAUNCH}test_a_server_gets_what_the_run_needs_and_ends_with_it"),
    Effect("rollout.launch.python", "", f"test:{LAUNCH}test_a_server_gets_what_the_run_needs_and_ends_with_it"),
    Effect("rollout.launch.gpus", "", f"test:{LAUNCH}test_a_server_gets_what_the_run_needs_and_ends_with_it"),
    Effect("rollout.launch.args", "", f"test:{LAUNCH}test_options_of_adapters_temperatures_and_a_teacher"),
    Effect("rollout.model", "rollout.model=s", "refuses:rollout.url and rollout.model", quick=True),
    Effect("rollout.api_key_env", "rollout.api_key_env=KEY", "refuses:rollout.api_key_env=KEY", quick=True),
    Effect("rollout.sync_dir", "rollout.sync_dir=sync", "refuses:rollout.sync_dir=sync", quick=True),
    Effect("rollout.path", "rollout.path=nothing", "refuses:rollout.path", quick=True),
    Effect("rollout.python", "", f"test:{OWN}"),
    Effect("rollout.n", "rollout.n=3", "metric:train/tokens"),
    Effect("rollout.max_new_tokens", "rollout.max_new_tokens=3", "metric:rollout/length"),
    Effect("rollout.temperature", "rollout.temperature=0.5", "metric:diag/reverse_kl"),
    Effect("rollout.top_p", "rollout.top_p=0.3", "metric:diag/reverse_kl"),
    Effect("rollout.ahead", "rollout.ahead=1", "metric:ahead/ess"),
    Effect("rollout.stop", "rollout.stop=union", "test:tests/models/test_tokenizers.py::test_differing_ends_are_shown_with_what_each_choice_does"),
    Effect("loss.divergence", "loss.divergence=forward_kl", "metric:train/loss"),
    Effect("loss.support", "loss.support=full", "metric:train/loss"),
    Effect("loss.k", "loss.k=3", "metric:train/loss"),
    Effect("loss.mode", "loss.mode=tail", "metric:train/loss"),
    Effect("loss.estimator", "loss.estimator=k2", "metric:train/loss", TOP),
    Effect("loss.beta", "loss.beta=0.9", "metric:train/loss", JSD),
    Effect("loss.student_temperature", "loss.student_temperature=2", "metric:train/loss"),
    Effect("loss.teacher_temperature", "loss.teacher_temperature=2", "metric:train/loss"),
    Effect("loss.terms.reward_scale", "loss.terms.reward_scale=3", "metric:train/loss", EXTRAPOLATED),
    Effect("loss.terms.reference", "loss.terms.reference=teacher", "metric:train/loss", EXTRAPOLATED),
    Effect("loss.terms.entropy_forward_kl", "loss.terms.entropy_forward_kl=0.01", "metric:train/loss"),
    Effect("loss.terms.position_decay", "loss.terms.position_decay=0.5", "metric:train/loss"),
    Effect("loss.terms.sft_weight", "loss.terms.sft_weight=3", "metric:train/grad_norm", EXAMPLES),
    Effect("loss.terms.sft_path", "loss.terms.sft_path=other.jsonl", "metric:train/grad_norm", EXAMPLES),
    Effect("loss.terms.outcome_weight", "loss.terms.outcome_weight=2", "metric:train/grad_norm"),
    Effect("loss.terms.mask_special_tokens", "loss.terms.mask_special_tokens=true", "state:masked"),
    Effect("diagnostics.positions", "diagnostics.positions=0", "metric:diag/reverse_kl"),
    Effect("optim.lr", "optim.lr=0.01", "weights"),
    Effect("optim.weight_decay", "optim.weight_decay=0.5", "weights"),
    Effect("optim.grad_clip", "optim.grad_clip=0.001", "weights"),
    Effect("optim.warmup", "optim.warmup=2", "weights"),
    Effect("optim.offload", "optim.offload=cpu", "test:tests/training/test_precision.py::test_offloaded_masters_step_to_the_same_bits"),
    Effect("optim.moments", "optim.moments=int8", "weights"),
    Effect("train.steps", "train.steps=3", "metric:train/loss"),
    Effect("train.prompts_per_step", "train.prompts_per_step=3", "metric:train/tokens"),
    Effect("train.tokens_per_microbatch", "train.tokens_per_microbatch=16", "state:microbatch"),
    Effect("train.seed", "train.seed=1", "metric:diag/reverse_kl"),
    Effect("train.deterministic", "train.deterministic=true", "state:deterministic"),
    Effect("eval", "eval=[]", "metric:eval/*"),
    Effect("eval.path", "eval.0.path=train.jsonl", "metric:eval/train/*"),
    Effect("eval.name", "eval.0.name=sums", "metric:eval/sums/*"),
    Effect("eval.template", "eval.0.template='sum elk {problem}'", "metric:eval/*"),
    Effect("eval.chat", "eval.0.chat=null", "metric:eval/*"),
    Effect("eval.n", "eval.0.n=3", "metric:eval/held/pass@3"),
    Effect("eval.temperature", "eval.0.temperature=9", "metric:eval/*"),
    Effect("eval.top_p", "eval.0.top_p=0.2", "metric:eval/*"),
    Effect("eval.max_new_tokens", "eval.0.max_new_tokens=1", "metric:eval/held/length"),
    Effect("eval.every", "eval.0.every=0", "metric:eval/held/length"),
    Effect("eval.limit", "eval.0.limit=1", "metric:eval/*"),
    Effect("eval.grader", "eval.0.grader=exact", "metric:eval/formal/accuracy", "student.model=teacher ; eval.0.path=formal.jsonl"),
    Effect("eval.teacher", "eval.0.teacher=b", "metric:teachers/*", TWO),
    Effect("coldstart", COLD, "file:coldstart/*", BEFORE),
    Effect("coldstart.when", "coldstart.when=alarm", "file:coldstart/*", COLD + " ; alarms.action=act"),
    Effect("coldstart.path", "coldstart={path: examples.jsonl, max_rounds: 1, mass: 1}", "file:coldstart/*", COLD),
    Effect("coldstart.prompts", "coldstart.prompts=more.jsonl", "file:coldstart/*", COLD),
    Effect("coldstart.temperature", "coldstart.temperature=0", "file:coldstart/*", COLD),
    Effect("coldstart.top_p", "coldstart.top_p=0.1", "file:coldstart/*", COLD + " ; coldstart.temperature=3"),
    Effect("coldstart.max_new_tokens", "coldstart.max_new_tokens=2", "refuses:Raise coldstart.max_new_tokens", COLD),
    Effect("coldstart.answer", "coldstart.answer=marked", "file:coldstart/*", COLD),
    Effect("coldstart.completions_per_round", "coldstart.completions_per_round=8", "file:coldstart/*", COLD),
    Effect("coldstart.max_rounds", "coldstart.max_rounds=1", "file:coldstart/*", COLD),
    Effect("coldstart.lr", "coldstart.lr=0.01", "weights", COLD),
    Effect("coldstart.mass", "coldstart.mass=0.01", "file:coldstart/*", COLD),
    Effect("horizon", "horizon={prune: {}}", "metric:horizon/weight"),
    Effect("horizon.cap", "horizon={cap: 2}", "metric:rollout/length"),
    Effect("horizon.grow", "horizon={grow: {start: 1, until: 2}}", "metric:rollout/length"),
    Effect("horizon.grow.start", "horizon.grow.start=4", "metric:rollout/length", "horizon={grow: {start: 1, until: 2}}"),
    Effect("horizon.grow.until", "horizon.grow.until=1", "metric:rollout/length", "horizon={grow: {start: 1, until: 2}}"),
    Effect("horizon.prune", "horizon={prune: {}}", "metric:horizon/weight"),
    Effect("horizon.prune.threshold", "horizon.prune.threshold=0.1", "metric:horizon/weight", "horizon={prune: {}}"),
    Effect("alarms.action", "alarms.action=off", "test:tests/alarms/test_rules.py::test_a_rule_that_is_off_is_silent_and_others_are_not"),
    Effect("alarms.rules", "alarms={rules: {drift: {action: stop}}}", "says:alarms.rules.drift is never given"),
    Effect("alarms.rules.action", "", "test:tests/alarms/test_rules.py::test_a_rule_that_is_off_is_silent_and_others_are_not"),
    Effect("alarms.rules.threshold", "", "test:tests/alarms/test_in_a_run.py::test_alarms_are_recorded_once_and_survive_an_interruption"),
    Effect("alarms.python", "", f"test:{OWN}"),
    Effect("select", "", "test:tests/mistakes/test_every_key.py::test_a_key_is_used_or_refused"),
    Effect("select.output", "select.output=others.jsonl", "output:others.*", SELECT, "select"),
    Effect("select.limit", "select.limit=8", "output:chosen.json*", SELECT, "select"),
    Effect("select.n", "select.n=3", "output:chosen.json*", SELECT, "select"),
    Effect("select.keep", "select.keep=1", "output:chosen.json*", SELECT, "select"),
    Effect("select.against", "select.against=[seen.jsonl]", "output:chosen.json*", SELECT, "select"),
    Effect("select.templates", "select.templates=['sum elk {problem}']", "output:chosen.json*", SELECT, "select"),
    Effect("check.origin", "", "test:tests/test_check.py::test_the_reverse_is_a_no_go_that_names_the_base_model"),
    Effect("recipe", "", "test:tests/test_auto.py::test_the_check_samples_a_small_fraction_of_the_tokens_of_the_run"),
    Effect("output.dir", "output.dir=elsewhere", "output:elsewhere/inputs.json"),
    Effect("output.save_every", "output.save_every=1", "file:checkpoints/*"),
    Effect("output.keep", "output.keep=1", "file:checkpoints/*", "output.save_every=1"),
    Effect("output.rollout_sample", "output.rollout_sample=1", "file:rollouts/*"),
    Effect("output.trackers", "", f"test:{OWN}"),
    Effect("output.price_per_hour", "", "test:tests/report/test_cost.py::test_money_is_price_times_time_with_its_basis"),
]
