"""Which files of a checkpoint's directory hold its weights, and what to do where they hold something else."""

import pathlib
from typing import Any

from safetensors import SafetensorError, safe_open

from sspo_jax.files import check_not_pointer, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NOT_THE_MODEL = ("adapter", "consolidated")  # an adapter beside it; the weights once more, under other names


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files with the model's weights, as transformers chooses them: one file, else those of the index.

    Without either, all safetensors files but those that are known to hold something else.

    Raises:
      FileNotFoundError: there are none, or one that the index names is missing.
      ValueError: the index cannot be read.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        weight_map = _weight_map(directory / INDEX)
        for file in sorted(set(weight_map.values())):
            if not (directory / file).is_file():
                names = [name for name, at in weight_map.items() if at == file]
                raise FileNotFoundError(
                    f"{directory / file} is missing; {INDEX} places {len(names)} tensors in it, {names[0]!r} first: "
                    "download it again"
                )
        return [directory / file for file in sorted(set(weight_map.values()))]
    files = sorted(directory.glob("*.safetensors"))
    found = [file for file in files if not file.name.startswith(_NOT_THE_MODEL)]
    if not found:
        raise FileNotFoundError(f"no {SINGLE} in {directory}; expected a Hugging Face checkpoint{instead(directory)}")
    return found


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index} has no weight_map; expected the file of each tensor: download it again")
    return weight_map


def file_of_each_tensor(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where each tensor lies, from the index where it counts, else from the files' own headers.

    Raises:
      FileNotFoundError, ValueError: as `weight_files`; a file that cannot be read, or a tensor in two of them.
    """
    files = weight_files(directory)
    if files != [directory / SINGLE] and (directory / INDEX).is_file():
        return {name: directory / file for name, file in _weight_map(directory / INDEX).items()}
    found: dict[str, pathlib.Path] = {}
    for file in files:
        for name in open_weights(file).keys():  # noqa: SIM118 (a handle is no mapping)
            if name in found:
                raise ValueError(f"tensor {name!r} is in both {found[name]} and {file}: remove one of them")
            found[name] = file
    return found


def open_weights(file: pathlib.Path) -> Any:
    """A handle of the safetensors library.

    Raises:
      ValueError: the file is truncated or is something else; says what to do.
    """
    check_not_pointer(file)
    try:
        return safe_open(str(file), framework="np")
    except SafetensorError as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is truncated or no safetensors file: {error}; "
            "download or export it again"
        ) from error


def has_tensor(directory: pathlib.Path, ending: str) -> bool | None:
    """Whether the checkpoint has a tensor whose name ends so; None where no weights are there, or none can be read.

    Reads headers alone.
    """
    try:
        return any(name.endswith(ending) for name in file_of_each_tensor(directory))
    except (OSError, ValueError):  # said in full by whoever reads the weights
        return None


def instead(directory: pathlib.Path) -> str:
    """What a directory without a checkpoint has, after a colon, and what to do with it; "" where that is nothing."""
    if (directory / "adapter_config.json").is_file():
        try:
            base = read_json(directory / "adapter_config.json").get("base_model_name_or_path") or "its base"
        except (ValueError, AttributeError):
            base = "its base"
        return (
            f": it holds a PEFT adapter of {base}. Merge it first (PeftModel.from_pretrained, merge_and_unload, "
            "save_pretrained)"
        )
    if found := _some(directory, "*.gguf"):
        return (
            f": it holds {found}, in the format of llama.cpp. Convert it first "
            "(AutoModelForCausalLM.from_pretrained(DIR, gguf_file=NAME), and save_pretrained of a model without its "
            "quantization_config)"
        )
    if found := _some(directory, "consolidated*.safetensors"):
        return f": it holds {found}, in another layout. Take the files that transformers reads"
    if found := _some(directory, "*.bin", "*.pth", "*.pt"):
        return f": it holds {found}. Convert it with transformers first (from_pretrained, save_pretrained)"
    return ""


def _some(directory: pathlib.Path, *patterns: str) -> str:
    names = sorted(file.name for pattern in patterns for file in directory.glob(pattern))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
