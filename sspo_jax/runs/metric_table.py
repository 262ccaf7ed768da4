"""What each number of metrics.jsonl means: one table, from which docs/metrics.md and the report are made.

A name may have parts that depend on the run, in angle brackets: `eval/<set>/accuracy`.

    python -m sspo_jax.runs.metric_table > docs/metrics.md
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    """One row of the table."""

    name: str
    """The key in metrics.jsonl, or a pattern of keys."""
    unit: str
    """What it is counted in."""
    meaning: str
    """What it is."""
    healthy: str = ""
    """What it looks like where all is well."""
    otherwise: str = ""
    """What to do where it does not."""


SECTIONS: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    (
        "Held-out scores",
        (
            Metric(
                "eval/<set>/accuracy",
                "share",
                "Problems of the held-out set whose greedy response is correct; with its interval in evaluations/.",
                "rises, then levels off",
                "falls while reward/mean rises: the reward is gamed, or the run overfits; use the best policy",
            ),
            Metric(
                "eval/<set>/avg_at_<k>",
                "share",
                "Correct responses among k sampled ones per problem, mean over the set.",
                "rises",
                "rises while accuracy stands still: sampling got safer, the mode did not get better",
            ),
            Metric("eval/<set>/length_mean", "tokens", "Mean length of the greedy responses."),
            Metric(
                "eval/<set>/truncated_fraction",
                "share",
                "Greedy responses that the length budget ended.",
                "near 0",
                "raise --evaluation.max-new-tokens",
            ),
        ),
    ),
    (
        "Reward",
        (
            Metric(
                "reward/mean",
                "reward",
                "Mean reward of the sampled responses that have one: the weighted sum of the terms.",
                "rises; noisy, as each step has other problems",
                "flat from the start: look at reward/informative_fraction, then at the responses themselves",
            ),
            Metric("reward/std", "reward", "Standard deviation of the rewards of a step.", "above 0"),
            Metric(
                "reward/<term>_mean",
                "value of the term",
                "Mean of one term before its weight: correctness, format, overlong, length, environment, a function "
                "of yours by its path, or a term that it names.",
                "all move the way they should",
                "one rises while another falls: they cancel; change the weights",
            ),
            Metric(
                "reward/informative_fraction",
                "share",
                "Responses in groups with two different rewards. The others have advantage 0 and no gradient.",
                "above 0.2",
                "easier or harder problems, --curriculum.floor 0.1, --rollout.dynamic-sampling 3, or larger groups",
            ),
            Metric(
                "reward/excluded_fraction",
                "share",
                "Responses without a verdict (time-out, error), which are left out.",
                "0",
                "see verify/timeout_fraction and verify/error_fraction",
            ),
        ),
    ),
    (
        "Responses",
        (
            Metric("response/length_mean", "tokens", "Mean length, the end token included.", "no sudden jumps"),
            Metric("response/length_max", "tokens", "Longest response of the step.", "below the budget"),
            Metric(
                "response/truncated_fraction",
                "share",
                "Responses that the length budget ended.",
                "below 0.1",
                "raise --rollout.max-new-tokens, or add --reward.overlong.weight 1",
            ),
            Metric("rollout/tokens", "tokens", "Sampled for this step, dropped groups of dynamic sampling included."),
            Metric(
                "rollout/age_mean",
                "steps",
                "Steps between the weights that sampled a token and those that the step found, mean over "
                "the tokens trained on; only with --rollout.lag or --rollout.partial.",
                "--rollout.lag, less in the first steps",
                "above: responses go on over several steps, see --rollout.partial",
            ),
            Metric("rollout/age_max", "steps", "Age of the oldest token."),
        ),
    ),
    (
        "Clip of the run's own objective",
        (
            Metric(
                "ratio/clip_fraction",
                "share of tokens",
                "Tokens whose gradient the clip removes, over all updates of the step.",
                "0.001 to 0.2",
                "at 0 the objective is a plain policy gradient: narrower bounds, or more updates per rollout; "
                "above 0.2 most of the signal is lost: wider bounds, fewer updates, a lower learning rate",
            ),
            Metric(
                "ratio/clip_fraction_low", "share of tokens", "... at the lower bound, where the advantage is negative."
            ),
            Metric("ratio/clip_fraction_high", "share of tokens", "... at the upper bound, where it is positive."),
            Metric("ratio/clip_fraction_dual", "share of tokens", "... at the dual clip, if the objective has one."),
            Metric(
                "ratio/clip_fraction_after_first",
                "share of tokens",
                "ratio/clip_fraction without the first update of the step, in which every ratio is 1.",
                "0.001 to 0.2",
                "see ratio/clip_fraction",
            ),
            Metric(
                "ratio/mean",
                "ratio",
                "Mean importance ratio at the objective's own level.",
                "0.9 to 1.1",
                "far from 1: the policy has left what was sampled; fewer updates or a lower learning rate",
            ),
            Metric(
                "ratio/max",
                "ratio",
                "Largest importance ratio at that level; ratio/<level>_max compares between objectives.",
                "below 10 at the level of tokens, below 2 above it",
                "see ratio/mean; a single outlier is what the clip is for",
            ),
            Metric(
                "clip/scale_mean",
                "factor",
                "SSPO: mean of g_k l_k, the factor by which entropy and length scale the bounds.",
                "0.7 to 1.4",
                "at entropy_floor or entropy_ceiling of the loss throughout: lower --loss.entropy-exponent",
            ),
        ),
    ),
    (
        "What the clip takes away, comparable between objectives",
        (
            Metric(
                "clip/extreme_fraction",
                "share of tokens",
                "Tokens with an advantage whose own ratio is outside 0.8 to 1.2 on the side where a clip takes the "
                "gradient: the extreme ones.",
                "0.001 to 0.1",
                "above, the policy moves far in a step: fewer updates, a lower learning rate",
            ),
            Metric(
                "clip/extreme_removed", "share", "Extreme tokens whose gradient the run's objective removes.", "near 1"
            ),
            Metric(
                "clip/moderate_removed",
                "share",
                "Other tokens with an advantage that go with their unit, or by narrow bounds.",
                "well below clip/extreme_removed",
                "near it: the clip does not tell outliers from the rest",
            ),
            Metric(
                "clip/<level>_extreme_removed",
                "share",
                "clip/extreme_removed, had the ratio been that of this level, with the run's bounds.",
                "falls from token to response: outliers are averaged away",
            ),
            Metric("clip/<level>_moderate_removed", "share", "clip/moderate_removed in the same way."),
            Metric("clip/precision", "share", "Tokens that the run's objective removes which are extreme themselves."),
            Metric("clip/<unit>_fraction", "share of units", "Subsentences, or responses, with a removed token."),
            Metric(
                "clip/mass_removed",
                "share",
                "Sum of abs(advantage x token log-ratio) over removed tokens, by that over all tokens.",
                "above ratio/clip_fraction: what is removed has moved more than the rest",
            ),
            Metric(
                "counterfactual/<level>_clip_fraction",
                "share of tokens",
                "What the run's own bounds, as they stand at each token, would clip by the ratio of this level.",
                "at the run's level: ratio/clip_fraction",
            ),
            Metric("ratio/<level>_max", "ratio", "Largest importance ratio of a token, subsentence or response."),
        ),
    ),
    (
        "What each level would have clipped on the same tokens",
        (
            Metric(
                "counterfactual/<method>_clip_fraction",
                "share of tokens",
                "What grpo, gspo and sspo would clip, each with its published bounds (sspo: 0.2, scaled by entropy), "
                "whatever this run trains with: compare with counterfactual/<level>_clip_fraction.",
                "gspo far above the others at its narrow bounds; grpo and sspo below 0.2",
            ),
            Metric("counterfactual/<method>_clip_fraction_low", "share of tokens", "... at the lower bound."),
            Metric("counterfactual/<method>_clip_fraction_high", "share of tokens", "... at the upper bound."),
            Metric(
                "ratio/<level>_log_square",
                "nats squared",
                "Mean square of the log-ratio of each token's unit: token, subsentence or response.",
                "falls from token to response, by about the length of a unit where tokens are independent",
                "falls slower: tokens of a unit move together",
            ),
            Metric(
                "ratio/<level>_effective_sample_size",
                "share",
                "(sum w)^2 / (N sum w^2) of the ratios w: 1 where all are equal.",
                "above 0.9",
                "below 0.5 a few tokens carry the gradient: fewer updates per rollout",
            ),
            Metric(
                "ratio_histogram/<level>_below_<edge>",
                "share of tokens",
                "Tokens whose unit's log-ratio is in the bin that ends at this edge, nats.",
            ),
            Metric("ratio_histogram/<level>_above", "share of tokens", "... beyond the last edge."),
        ),
    ),
    (
        "Experts",
        (
            Metric(
                "experts/load_max",
                "share of an equal load",
                "How often the busiest expert of a layer is chosen, over the mean of its layer; the largest of all "
                "layers. This and the next two: of models with experts, over all tokens of the updates, prompts too.",
                "steady",
                "rises: routing collapses onto few experts; a lower learning rate, or LoRA, which leaves routers alone",
            ),
            Metric(
                "experts/load_std",
                "share of an equal load",
                "Standard deviation of the loads of a layer over their mean, averaged over the layers.",
                "steady",
            ),
            Metric("experts/load_idle_fraction", "share", "Experts that no token was sent to.", "steady"),
            Metric(
                "experts/changed_fraction",
                "share",
                "Choices in the updates that the router would make otherwise than when the old log-probs were "
                "computed; only with --update.replay-routing, which makes them as then.",
                "0 in the first update of a step, a few per cent on average",
                "tenths: the policy moves too far in a step; fewer updates per rollout or a lower learning rate",
            ),
        ),
    ),
    (
        "Policy",
        (
            Metric(
                "policy/entropy",
                "nats",
                "Mean entropy of the distribution each token was drawn from, before the updates.",
                "falls slowly",
                "towards 0: exploration is over; raise --loss.clip-high or --loss.entropy-coefficient",
            ),
            Metric(
                "policy/kl_old",
                "nats",
                "KL from the policy that sampled to the one being trained, k3 estimate, mean over the updates.",
                "below 0.1",
                "a lower learning rate or fewer updates",
            ),
            Metric(
                "sampler/logprob_gap_mean",
                "nats",
                "Mean difference, without its sign, between log-probs of the sampler and of the training program.",
                "float32: below 1e-4, bfloat16: below 0.02; constant",
                "grows: the sampler computes something else; --loss.correction.mode truncate, and report it",
            ),
            Metric("sampler/logprob_gap_max", "nats", "The largest such difference.", "below 1"),
            Metric(
                "loss/policy",
                "objective",
                "The clipped surrogate, negated; its value says little, advantages are centred.",
                "around 0",
            ),
            Metric("loss/kl", "nats", "The KL term to the reference policy, before its coefficient.", "below 1"),
            Metric("loss/entropy", "nats", "The entropy term, before its coefficient."),
            Metric(
                "policy/kl_teacher",
                "nats",
                "KL from the policy before the updates to its teacher, on its samples, with --loss distill.",
                "falls",
            ),
            Metric("loss/entropy_coefficient", "weight", "Of the entropy bonus, with --loss.entropy-target."),
            Metric(
                "correction/weight_mean",
                "factor",
                "Mean weight of the rollout correction, before it is truncated or rejected.",
                "near 1",
                "far from 1 the policy has left the one that sampled: a smaller --rollout.lag",
            ),
            Metric("correction/weight_max", "factor", "Largest weight, before it is truncated or rejected."),
            Metric("correction/truncated_fraction", "share of tokens", "Tokens whose weight it lowers.", "below 0.05"),
            Metric("correction/rejected_fraction", "share of tokens", "Tokens it leaves out.", "below 0.05"),
            Metric("correction/off_policy_fraction", "share of tokens", "Tokens of responses left out off policy."),
            Metric(
                "advantage/clip_b_fraction", "share of tokens", "Tokens cleared by --advantage.clip-b.", "below 0.02"
            ),
        ),
    ),
    (
        "Subsentences",
        (
            Metric("subsentence/count_mean", "per response", "Subsentences per response.", "2 or more"),
            Metric(
                "subsentence/length_mean",
                "tokens",
                "Mean length of a subsentence.",
                "5 to 30",
                "with one per response SSPO is GSPO: another --segmenter.rule, or a smaller --segmenter.max-tokens",
            ),
            Metric("subsentence/entropy_mean", "nats", "Mean over subsentences of their mean entropy."),
            Metric(
                "subsentence/entropy_variance",
                "nats squared",
                "Variance of that entropy around the mean of the batch.",
                "above 0",
                "near 0: entropy has nothing to say about the bounds",
            ),
        ),
    ),
    (
        "Optimizer",
        (
            Metric(
                "optim/grad_norm",
                "norm",
                "Gradient norm before clipping, mean over the updates of the step that were applied.",
                "steady",
                "spikes: a lower learning rate, or --optimizer.max-grad-norm",
            ),
            Metric("optim/grad_norm_max", "norm", "Largest of these norms."),
            Metric("optim/learning_rate", "rate", "Of the last update."),
            Metric(
                "optim/skipped_updates",
                "updates",
                "Left out because a gradient was not finite (--update.skip-non-finite).",
                "0",
                "a lower learning rate",
            ),
        ),
    ),
    (
        "Each update of a step",
        (
            Metric(
                "update/fill",
                "share",
                "Places of the training rows with a token; the others, empty rows among them, are computed too.",
                "above 0.7",
                "--update.micro-rows that divides the rows of an update, or another --update.row-tokens",
            ),
            Metric(
                "update/backward_fraction",
                "share of micro-batches",
                "Those with a gradient; the others, whose advantages are all 0, say, have no backward pass.",
                "1; less where many groups have equal rewards",
            ),
            Metric(
                "update/<n>/clip_fraction",
                "share of tokens",
                "ratio/clip_fraction of update n alone.",
                "0 at n = 1, then rises",
            ),
            Metric("update/<n>/kl_old", "nats", "policy/kl_old of update n alone.", "0 at n = 1, then rises"),
            Metric(
                "update/<n>/effective_sample_size",
                "share",
                "ratio/subsentence_effective_sample_size of update n alone.",
                "1 at n = 1, then falls a little",
                "falls below 0.5: fewer updates per rollout",
            ),
            Metric("update/<n>/grad_norm", "norm", "Gradient norm of update n before clipping.", "alike for all n"),
        ),
    ),
    (
        "Checker",
        (
            Metric(
                "verify/<status>_fraction",
                "share",
                "Responses judged correct, wrong, unparsed, timeout or error.",
                "unparsed falls early; timeout and error are 0",
                "many unparsed: the prompt does not ask for the answer as the checker reads it, see docs/checker.md",
            ),
            Metric("verify/seconds", "seconds", "Summed time of the checks of a step, in all workers."),
        ),
    ),
    (
        "Time and speed",
        (
            Metric("time/unix_seconds", "seconds since 1970", "When the row was written, by the clock of process 0."),
            Metric(
                "time/started_unix_seconds",
                "seconds since 1970",
                "When the session that wrote the row began to write; another number: the run was resumed in between.",
            ),
            Metric("time/rollout_seconds", "seconds", "Sampling, of what this step is trained on."),
            Metric(
                "time/wait_seconds",
                "seconds",
                "Waiting for what is sampled beside the updates, once these are made; only where --rollout.lag is 1 or "
                "more and a server or other devices sample.",
                "near 0",
                "sampling takes longer than training: more servers or --rollout.devices, or --rollout.partial",
            ),
            Metric(
                "time/verify_seconds",
                "seconds",
                "Waiting for verdicts after the last response.",
                "small beside time/rollout_seconds",
                "more --reward.workers",
            ),
            Metric("time/verify_hidden_seconds", "seconds", "Checking that went on while others were still sampled."),
            Metric("time/score_seconds", "seconds", "Old log-probs, entropies and subsentences."),
            Metric("time/update_seconds", "seconds", "All updates."),
            Metric(
                "time/token_log_seconds",
                "seconds",
                "Writing per-token data, in the steps that do (--log.tokens-every).",
            ),
            Metric(
                "throughput/rollout_tokens_per_second", "tokens per second", "rollout/tokens by time/rollout_seconds."
            ),
        ),
    ),
    (
        "Curriculum",
        (
            Metric("curriculum/problems_seen", "problems", "Problems with a solve rate."),
            Metric("curriculum/solve_rate_mean", "share", "Mean of these rates.", "0.3 to 0.7"),
            Metric("curriculum/weight_mean", "probability", "Mean probability with which a problem is taken now."),
            Metric("curriculum/passed_over", "problems", "Candidates not taken, since the start of the run."),
        ),
    ),
)
"""In the order in which a person reads them."""

METRICS: tuple[Metric, ...] = tuple(metric for _, metrics in SECTIONS for metric in metrics)

PLACEHOLDERS = {
    "<set>": "the name of a held-out set",
    "<k>": "responses per problem, `--evaluation.samples`",
    "<term>": "the name of a reward term",
    "<method>": "grpo, gspo or sspo",
    "<level>": "token, subsentence or response",
    "<unit>": "subsentence or response",
    "<edge>": "the upper edge of a bin, nats",
    "<n>": "the number of an update in its step, from 1",
    "<status>": "correct, wrong, unparsed, timeout or error",
}
_PART = {
    "<method>": "grpo|gspo|sspo",
    "<level>": "token|subsentence|response",
    "<unit>": "subsentence|response",
    "<n>": r"\d+",
    "<k>": r"\d+",
}


def describe(name: str) -> Metric | None:
    """The row of the table that a key of metrics.jsonl belongs to.

    >>> describe("eval/math500/accuracy").unit
    'share'
    """
    place = _place(name)
    return METRICS[place] if place < len(METRICS) else None


def reading_order(names: Iterable[str]) -> list[str]:
    """Keys in the order of the table; unknown ones last, by name."""
    return sorted(names, key=lambda name: (_place(name), _natural(name)))


def markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "What each key of `metrics.jsonl` is, what it looks like where all is well, and what to do where it does not;",
        "made from the table in `sspo_jax/runs/metric_table.py` by `make metrics-page`.",
        "",
        "A row is one step: `step`, then these numbers, null where one is not finite. The row of step 0 has the",
        "evaluation before the first step. Means are over the valid tokens of all updates of a step unless something",
        "else is said. What stands in angle brackets depends on the run:",
        "",
        "| in a key | stands for |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in PLACEHOLDERS.items()),
    ]
    for title, metrics in SECTIONS:
        lines += ["", f"## {title}", "", "| key | unit | meaning | healthy | otherwise |", "|---|---|---|---|---|"]
        for metric in metrics:
            cells = (f"`{metric.name}`", metric.unit, metric.meaning, metric.healthy, metric.otherwise)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


@functools.cache
def _place(name: str) -> int:
    """Which row of the table; exact names come before patterns."""
    exact = [place for place, metric in enumerate(METRICS) if metric.name == name]
    fitting = [place for place, pattern in enumerate(_patterns()) if pattern.fullmatch(name)]
    return (exact or fitting or [len(METRICS)])[0]


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    def part(text: str) -> str:
        return f"(?:{_PART.get(text, '.+')})" if text in PLACEHOLDERS else re.escape(text)

    return tuple(re.compile("".join(map(part, re.split(r"(<\w+>)", metric.name)))) for metric in METRICS)


def _natural(name: str) -> list[tuple[int, float, str]]:
    """Numbers in a name by their value."""
    parts = re.split(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)", name)
    return [(1, float(part), "") if place % 2 else (0, 0.0, part) for place, part in enumerate(parts)]


if __name__ == "__main__":
    print(markdown(), end="")
