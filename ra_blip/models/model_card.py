"""The README.md of a model folder: what is in it, how to use it; the hub shows it as the model's page."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_PARTS = {
    "vision": "vision tower",
    "retriever": "retriever: Q-Former, fusion, head of the shared space",
    "reader": "reader: Q-Former and projection",
    "reader.generator": "language model",
    "ranker": "ranker",
}


def card(name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """A model card.

    Args:
        name: of the model.
        config: what ``config.json`` says.
        tensors: what ``model.safetensors`` holds.

    Returns:
        Markdown with the metadata block that the Hugging Face hub reads.
    """
    counts = dict.fromkeys(_PARTS, 0)
    for key, value in tensors.items():
        part = "reader.generator" if key.startswith("reader.generator.") else key.partition(".")[0]
        counts[part] += value.numel()
    rows = [f"| {_PARTS[part]} | {count:,} |" for part, count in counts.items() if count]
    references = [
        f"The weights of `model.{section}` are `{one['name']}`'s (sha256 {one['sha256'][:16]}...), not stored here."
        for section, one in config.get("references", {}).items()
    ]
    use = ["```python", "from ra_blip import RABlip", "", "model = RABlip.from_pretrained(FOLDER)", "```"]
    if config.get("partial"):
        use += ["", "Converted weights: other parts start untrained, and what `FOLDER` has no files of must be given."]
    head = ["---", "library_name: ra-blip", "pipeline_tag: visual-question-answering", "---", "", f"# {name}", ""]
    about = ["RA-BLIP: answers questions about pictures and texts with retrieved knowledge.", ""]
    table = ["| part | stored parameters |", "|---|---|", *rows, ""]
    return "\n".join([*head, *about, *table, *references, *([""] if references else []), *use]) + "\n"
