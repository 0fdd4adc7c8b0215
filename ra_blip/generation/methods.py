"""Retrieval methods by name, each a set of pipeline settings. It imports nothing, so that ``--help`` can list them.

Settings are fields of :class:`ra_blip.generation.pipeline.PipelineConfig`; what a method does not name has the default,
which is RA-BLIP's.
"""

from __future__ import annotations

Settings = dict[str, str | int | float | bool]

METHODS: dict[str, Settings] = {
    "none": {"retriever": "none"},
    "ra_blip": {},
    # RAVEN (arXiv 2406.19150): what the picture resembles, as captioned pictures, without any part of its own.
    # The paper's code is not public: pool, filters and number of pairs are those of its relatives, see projects/raven.
    "raven": {
        "query": "image",
        "kind": "image+text",
        "hops": 1,
        "k": 50,
        "filters": "same_id,same_bytes,near_picture:4,query_cosine:0.995,diversity:0.94",
        "rerank": "none",
        "keep": 3,
        "threshold": 0.0,
        "askg": False,
    },
    # RIR (arXiv 2405.18740): the pictures most like the question's, from the index or the web, name what is shown. Who
    # knows about it is a large generator in the paper; here it is the index, searched again with the name's words. The
    # paper's own form is hops=1 rerank=none threshold=0 askg=false: the results themselves in the prompt.
    "rir": {"retriever": "reverse_image", "k": 12},
    # RagVL (arXiv 2407.21439): the language model itself says Yes or No to each candidate; kept from a threshold on.
    "ragvl": {
        "rerank": "llm_yesno",
        "keep": 2,
        "threshold": 0.5,
        "keep_best": False,
        "askg": False,
    },
}
