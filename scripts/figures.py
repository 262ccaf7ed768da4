"""The drawn figures of docs/pictures/: `make figures` writes them anew.

ratio_levels.png comes out of the notebook; learning.svg from the results of the default_range study, removed.svg from
those of ratio_levels; step.svg and mesh.svg explain, with the numbers that stand here.
"""

import base64
import pathlib

import matplotlib
import nbformat

matplotlib.use("agg")
import matplotlib.pyplot as plt

from sspo_jax.files import read_json

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
NOTEBOOK = ROOT / "notebooks" / "ratio_levels.ipynb"
STUDY = ROOT / "docs" / "study" / "default_range.json"
LEVELS = ROOT / "docs" / "study" / "ratio_levels.json"

BLUE, RED, GREEN, YELLOW, GRAY = "#2563eb", "#dc2626", "#16a34a", "#f59e0b", "#9ca3af"

STAGES = (
    ("rollout", 0.60, BLUE, "sample"),
    ("score", 1.28, YELLOW, "old log-probs, entropies;\nclauses, advantages"),
    *((f"update {i}", 0.75, GREEN, "") for i in range(1, 5)),
)
"""Name, seconds, colour and note: the tenth step of the default experiment on two cores."""

AXES = (
    ("data", "replicas: rows of the batch", 2),
    ("fsdp", "rows of the batch; parameters by their embedding axis", 2),
    ("tensor", "heads, MLP, vocabulary", 2),
)
"""The example of the mesh figure, eight devices: axis, what lies along it, devices."""


def ratio_levels() -> None:
    """The figure that the notebook draws, as it was last run."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                (PICTURES / "ratio_levels.png").write_bytes(base64.b64decode(output["data"]["image/png"]))
                return
    raise ValueError(f"{NOTEBOOK} has no figure: run `make notebook` first")


def learning() -> None:
    """Share of right responses in training, mean over seeds with its interval."""
    study = read_json(STUDY)
    figure, axis = plt.subplots(figsize=(7, 3.6))
    labels = {"calibrated": "0.02 / 0.028", "half": "0.01 / 0.014 (the default)", "quarter": "0.005 / 0.007"}
    for curve, color in zip(study["curves"], (BLUE, RED, GREEN), strict=True):
        axis.plot(curve["steps"], curve["value"], color=color, label=labels[curve["variant"]], linewidth=1.5)
        axis.fill_between(curve["steps"], curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("step")
    axis.set_ylabel("right responses")
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axis.legend(title=f"clip range; {len(study['seeds'])} seeds, 95 % interval", frameon=False)
    _save(figure, "learning")


def removed() -> None:
    """The last score over what the clip removes, a point a variant, in each setting of ratio_levels."""
    study = read_json(LEVELS)
    looks = {
        "grpo": (BLUE, "s"), "token": (BLUE, "o"), "token-entropy": (BLUE, "^"),
        "sspo": (RED, "s"), "subsentence": (RED, "o"), "subsentence-entropy": (RED, "^"),
        "gspo": (GREEN, "s"), "response": (GREEN, "o"), "response-entropy": (GREEN, "^"),
    }  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey=True)
    drawn = {}
    for axis, setting in zip(axes.flat, study["settings"], strict=True):
        for row in (row for row in study["table"] if row["setting"] == setting["name"]):
            sides = [row["outcomes"][name] for name in ("mass removed", "final score")]
            errors = [[[own["value"] - own["low"]], [own["high"] - own["value"]]] for own in sides]
            color, marker = looks[row["variant"]]
            drawn[row["variant"]] = axis.errorbar(
                *(own["value"] for own in sides), xerr=errors[0], yerr=errors[1], color=color, marker=marker,
                markersize=6, linewidth=0.8, linestyle="none",
            )  # fmt: skip
        axis.set_title(f"{setting['task']}, learning rate {setting['rate']:g}", fontsize=10)
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    figure.supxlabel("what the clip removes of the sum of |A d|", fontsize=10)
    figure.supylabel("last held-out score", fontsize=10)
    figure.legend([drawn[name] for name in looks], list(looks), loc="upper center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.89))
    _save(figure, "removed", fits=False)


def step() -> None:
    """What one step does, to scale."""
    figure, axis = plt.subplots(figsize=(9, 2.6))
    start = 0.0
    for name, seconds, color, note in STAGES:
        axis.barh(1, seconds, left=start, color=color, edgecolor="white", height=0.7)
        axis.text(start + seconds / 2, 1, name, ha="center", va="center", color="white", fontsize=9)
        axis.text(start + 0.02, 1.45, note, fontsize=8, va="bottom")
        start += seconds
    axis.barh(0, STAGES[0][1] - 0.08, left=0.1, color=GRAY, edgecolor="white", height=0.5)
    axis.text(STAGES[0][1] + 0.06, 0, "verify: worker processes, hidden behind sampling", va="center", fontsize=8)
    axis.text(
        STAGES[0][1] + STAGES[1][1] + 0.02,
        1.45,
        "a minibatch of whole groups each;\nratio, clip, gradient, Adam",
        fontsize=8,
        va="bottom",
    )
    axis.set_ylim(-0.5, 2.4)
    axis.set_yticks([])
    axis.set_xlabel("seconds, the default experiment on two CPU cores")
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    _save(figure, "step")


def mesh() -> None:
    """Eight devices on three axes, and which array is cut along which."""
    figure, axis = plt.subplots(figsize=(9, 3.4))
    names = [name for name, _, _ in AXES]
    for data in range(2):
        for fsdp in range(2):
            for tensor in range(2):
                x, y = 2.4 * data + 1.1 * tensor, 1.15 * (1 - fsdp)
                axis.add_patch(
                    plt.Rectangle((x, y), 1.0, 1.0, facecolor=(BLUE, GREEN)[data], alpha=0.25 + 0.2 * tensor)
                )
                axis.text(
                    x + 0.5,
                    y + 0.5,
                    f"{names[0]} {data}\n{names[1]} {fsdp}\n{names[2]} {tensor}",
                    ha="center",
                    va="center",
                    fontsize=8,
                )
    lines = [
        "rows of the batch [batch, time]:  data, fsdp",
        "MLP kernel [embed, mlp]:  embed over fsdp, mlp over tensor",
        "attention kernel [embed, heads]:  embed over fsdp, heads over tensor",
        "embedding table [vocab, embed]:  vocab over tensor, embed over fsdp",
        "optimizer state: as the parameter",
        "while sampling:  a layout of its own (--rollout.mesh)",
    ]
    for i, line in enumerate(lines):
        axis.text(5.0, 1.95 - 0.36 * i, line, fontsize=9, va="center")
    axis.text(0, 2.35, "--mesh.data 2 --mesh.fsdp 2 --mesh.tensor 2", fontsize=10, family="monospace")
    axis.set_xlim(-0.1, 9.6)
    axis.set_ylim(-0.1, 2.6)
    axis.axis("off")
    _save(figure, "mesh")


def _save(figure: plt.Figure, name: str, *, fits: bool = True) -> None:
    if fits:
        figure.tight_layout()
    figure.savefig(PICTURES / f"{name}.svg", facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sspo_jax", "font.family": "sans-serif"})
    for draw in (ratio_levels, learning, removed, step, mesh):
        draw()
        print(f"{draw.__name__} drawn")
