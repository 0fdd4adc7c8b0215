"""Multimodal adaptive fusion and the shared space: queries, captions and texts become one vector each.

Source: RA-BLIP (Ding et al., arXiv 2410.14154); the paper leaves pooling and head open, choices are named below.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ra_blip.config import QFormerConfig, RetrieverConfig
from ra_blip.models.attention import KeyValue, TransformerLayer, init_bert, may_attend
from ra_blip.models.qformer import QFormer


class Fusion(nn.Module):
    """Self-attention layers over queries and text together, BERT style; no layers make it the identity.

    Unlike the Q-Former's, the feed-forward is one for all positions: it is what puts both kinds in one space.
    """

    def __init__(self, config: QFormerConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.ffn, 1e-12, config.norm_first, config.dropout)
            for _ in range(layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=1e-12) if config.norm_first and layers else nn.Identity()
        self.apply(init_bert)

    def forward(self, queries: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
        """(B, Q, D) and (B, L, D) -> the fused query positions (B, Q, D)."""
        x, mask = queries, None
        if text is not None:
            x = torch.cat([queries, text], dim=1)  # (B, Q + L, D)
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            if text_mask is not None:
                valid[:, queries.shape[1] :] = text_mask.bool()
            mask = may_attend(valid)
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_norm(x)[:, : queries.shape[1]]  # type: ignore[no-any-return]


class Retriever(nn.Module):
    """Everything into one space: text by the Q-Former's first text state, pictures by the mean of the fused queries.

    One shared Linear + tanh head serves all kinds of item; vectors are L2-normalised, so inner product is cosine.
    The text state of a fused pair is never pooled: it would let a picture's vector repeat the question that
    conditioned it.

    Args:
        qformer: sizes of the Q-Former and the fusion layers.
        config: fusion depth and shared dimension.
        vocabulary: number of text tokens.
        feature_width: width W of the visual features.
    """

    def __init__(self, qformer: QFormerConfig, config: RetrieverConfig, vocabulary: int, feature_width: int) -> None:
        super().__init__()
        self.ln_vision = nn.LayerNorm(feature_width, eps=qformer.ln_vision_eps)
        self.qformer = QFormer(qformer, vocabulary, feature_width, lm_head=True)
        self.fusion = Fusion(qformer, config.fusion_layers)
        self.head = nn.Linear(qformer.width, config.dimension)
        self.itm_head = nn.Linear(qformer.width, 2)
        init_bert(self.itm_head)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

    @property
    def temperature(self) -> Tensor:
        """Scalar softmax temperature, kept within [0.001, 0.5]."""
        return self.log_temperature.clamp(math.log(0.001), math.log(0.5)).exp()

    def kv(self, features: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values of picture features (U, N, W)."""
        return self.qformer.cross_kv(self.ln_vision(features))

    def text_vectors(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, D) unit vectors."""
        states = self.qformer("text", text=text, text_mask=text_mask).text
        return self._project(states[:, 0])

    def fused(self, kv: list[KeyValue], text: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
        """Pictures, with the text that guides them where there is one -> mean of the fused queries (B, width)."""
        out = self.qformer("image" if text is None else "instruct", kv=kv, text=text, text_mask=text_mask)
        assert out.queries is not None
        return self.fusion(out.queries, out.text, text_mask).mean(dim=1)  # type: ignore[no-any-return]

    def picture_vectors(
        self, kv: list[KeyValue], text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """As :meth:`fused`, in the shared space -> (B, D) unit vectors."""
        return self._project(self.fused(kv, text, text_mask))

    def project_queries(self, queries: Tensor) -> Tensor:
        """Query states of the ``image`` mode (B, Q, width) -> (B, D) unit vectors, those of :meth:`picture_vectors`."""
        return self._project(self.fusion(queries).mean(dim=1))

    def _project(self, pooled: Tensor) -> Tensor:
        return F.normalize(torch.tanh(self.head(pooled)).float(), dim=-1)
