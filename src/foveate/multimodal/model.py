"""The multimodal model: an image tower, a connector, and a language model of transformers fed by `inputs_embeds`.

    pixels -> tower -> tokens_VLD -> connector -> visual tokens_VTE \\
    indicators of tiles -> token ids -> embeddings (between the views)      language model -> logits
    question -> token ids -> embeddings_BTE, regions overwritten   /

After LLaVA and MM1.5. Three options go beyond the paper, for models that are trained in minutes on a laptop: a region
is one token that carries the mean of its patches, text tokens carry the map of where they are seen, and boxes come from
a head that reads the map of a phrase.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.language.lora import is_lora
from foveate.language.packing import SLOT, PackedTexts, attention_and_positions, quick_backward
from foveate.language.sparse import pop_router_losses
from foveate.multimodal.assemble import AssemblyOptions, SamplePlan, plan_sample
from foveate.multimodal.phrase_maps import BoxHead, PhraseMaps, PhraseMatch, box_weights, select_views
from foveate.multimodal.referring import RegionPrompts, RegionReader
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.multimodal.views import ViewLayout, Visual, find_images_before
from foveate.vision.anyres_map import order_rows
from foveate.vision.connectors import Connector, PooledConnector
from foveate.vision.dual import DualConnector, DualTower
from foveate.vision.encoder import ImageEncoder
from foveate.vision.regions import RegionEncoder
from foveate.vision.tiling import ImageSize, TilingOptions


class MultimodalModel(nn.Module):
    """Tower, connector and language model.

    Args:
        settings: of its parts.
        tower: the image encoder.
        connector: maps its tokens to the width of the language model.
        language_model: a causal language model of transformers.
        region_id: id of the token `<region>`.
        region_encoder: reads the vectors of regions from the tower's map.
    """

    def __init__(
        self,
        settings: MultimodalSettings,
        *,
        tower: ImageEncoder,
        connector: Connector,
        language_model: Any,
        region_id: int,
        region_encoder: RegionEncoder | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.region_id = settings, region_id
        self.tower, self.connector, self.language_model = tower, connector, language_model
        if settings.assembly is not None:
            _check_assembly(settings.assembly, tower, connector)
        width = int(language_model.config.hidden_size)
        self.width = width
        # A connector that pools first has no patches in the language model's space, only its tokens.
        self.pools_last = isinstance(connector, PooledConnector)
        side = round(connector.num_tokens**0.5)
        self.grid = tower.grid if self.pools_last else (side, side)
        source = settings.language if isinstance(settings.language, SourceSettings) else None
        # Visual tokens as long as the embeddings of text: a LayerNorm leaves them sqrt(width) long. New embeddings have
        # length 1.
        gain = torch.full((1,), width**-0.5)
        if source is not None:
            gain = gain * torch.linalg.vector_norm(self.embeddings_VE.detach(), dim=1, dtype=torch.float32).mean()
        self.visual_gain = nn.Parameter(gain)
        if settings.visual_positions:
            self.view_position_TE = nn.Parameter(torch.zeros(connector.num_tokens, width))
            self.image_index_KE = nn.Parameter(torch.zeros(settings.max_images, width))
        # The scale of alignment: similarity of a region with names, as logits.
        self.name_scale = nn.Parameter(torch.ones(1))
        # Trained embeddings share a large component, which would make all names alike; see `set_names`.
        self.register_buffer("center_E", torch.zeros(width), persistent=source is not None)
        self.center_E: Tensor
        # Around the center; not stored, since the vocabulary and the names of the folder say it.
        self.register_buffer("words_NE", torch.zeros(0, width), persistent=False)
        self.words_NE: Tensor
        if settings.regions != "text":
            self.region_E = nn.Parameter(torch.zeros(width))
        self.region_reader = (
            RegionReader(region_encoder, grid=tower.grid, settings=settings) if region_encoder is not None else None
        )
        self.phrase_maps = (
            PhraseMaps(width=width, grid=self.grid, images=min(2, settings.max_images))
            if settings.phrase_maps
            else None
        )
        self._router_losses: dict[str, Tensor] = {}
        self.box_head = BoxHead(width=width, grid=self.grid) if settings.box_head else None
        if source is not None and self.phrase_maps is not None:
            # A trained model begins with the text that it knows.
            for parameter in self.phrase_maps.out.parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def set_names(self, names_NE: Tensor) -> None:
        """Set the names: alignment compares around the mean of their embeddings, where visual tokens start.

        Args:
            names_NE: mean embedding of the tokens of each name.
        """
        for name in ("center_E", "view_position_TE", "region_E"):
            if hasattr(self, name):
                getattr(self, name).copy_(names_NE.mean(dim=0))
        self.set_words(names_NE)

    def set_words(self, names_NE: Tensor) -> None:
        """Set the names whose embeddings visual words mix, where the settings have visual words."""
        if self.settings.visual_words:
            self.words_NE = names_NE - self.center_E

    def require_gradients(self) -> None:
        """Let everything be trained but the frozen weights of a language model from elsewhere."""
        self.requires_grad_(True)
        source = self.settings.language
        if isinstance(source, SourceSettings) and source.tuning != "full":
            for name, parameter in self.language_model.named_parameters():
                parameter.requires_grad_(source.tuning == "lora" and is_lora(name))

    @property
    def max_positions(self) -> int:
        """Return the longest sequence that the language model was built for."""
        # Configs of models that attend by distance alone, such as Bloom's, have no such field.
        return int(getattr(self.language_model.config, "max_position_embeddings", 2**31))

    @property
    def embeddings_VE(self) -> Tensor:
        """The table of token embeddings."""
        return self.language_model.get_input_embeddings().weight

    @property
    def assembly(self) -> AssemblyOptions:
        """How images become views; one overview each where the settings have no tiles."""
        if self.settings.assembly is not None:
            return self.settings.assembly
        preprocess = self.tower.preprocess
        tiling = TilingOptions(
            tile=preprocess.side, overview_fit="pad" if preprocess.geometry == "letterbox" else "stretch"
        )
        return AssemblyOptions(
            tiling=tiling, indicator="none", tokens_per_view=self.connector.num_tokens, max_split_images=0
        )

    def plan(self, *sizes: tuple[int, int]) -> SamplePlan:
        """Plan the views of a sample from the (height, width) of its images in pixels.

        Raises:
            UserError: an image has no pixels.
        """
        return plan_sample([ImageSize(*size) for size in sizes], self.assembly)

    def see(self, features: Tensor, cell_V2: Tensor | None = None) -> Visual:
        """Map pixels or frozen features of V views to visual tokens.

        Args:
            cell_V2: row and column of each tile from 1, 0 and 0 of overviews; None = overviews alone. With the token
                order "rows", views of whole images.
        """
        visual = self.encode_views(features, cell_V2)
        return visual if cell_V2 is None else self.order_views(visual, cell_V2)

    def order_views(self, visual: Visual, cell_V2: Tensor) -> Visual:
        """Bring what the language model reads of whole images into the order of the settings."""
        if self.assembly.token_order == "views":
            return visual
        return visual._replace(tokens_VTE=order_rows(visual.tokens_VTE, cell_V2))

    def encode_views(self, features: Tensor, cell_V2: Tensor | None = None) -> Visual:
        """Map views to visual tokens as `see` does, in the order of views."""
        if isinstance(self.tower, DualTower) and isinstance(self.connector, DualConnector):
            is_overview_V = torch.ones(len(features), dtype=torch.bool, device=features.device)
            if cell_V2 is not None:
                is_overview_V = (cell_V2 == 0).all(dim=1)
            dual = self.tower.encode(features, is_overview_V)
            full_VLE = self.connector.join(dual, is_overview_V)
            return Visual(full_VLE, full_VLE, self._region_tokens(dual.map_VLC, full_VLE))
        tokens_VLD = self.tower(features).tokens
        if isinstance(self.connector, PooledConnector):
            full_VLE = self.connector.full(tokens_VLD)
            pooled_VTE = self.connector.pool(full_VLE)
        else:
            full_VLE = pooled_VTE = self.connector(tokens_VLD)
        return Visual(full_VLE, pooled_VTE, self._region_tokens(tokens_VLD, full_VLE))

    def _region_tokens(self, tokens_VLD: Tensor, full_VLE: Tensor) -> Tensor:
        if self.region_reader is None:
            # Empty, not None: selecting and batching views treat all fields of `Visual` the same way.
            return full_VLE[:, :0]
        if self.settings.region_map == "connector":
            tokens_VLD = full_VLE
        return torch.cat([tokens_VLD, full_VLE], dim=2) if self.settings.region_mean else tokens_VLD

    def view_regions(self, visual: Visual, boxes_R4: Tensor, view_R: Tensor) -> Tensor:
        """Return the vectors [R, E] of boxes in [0, 1] of their views, as alignment compares them with names."""
        if self.region_reader is None:
            return self.region_means(visual, boxes_R4, view_R)
        return self.region_reader.read_views(visual.tower_VLD, boxes_R4, view_R)

    def region_means(self, visual: Visual, boxes_R4: Tensor, view_R: Tensor) -> Tensor:
        """Return the mean [R, E] of the patches that each box covers, weighted by how much of them."""
        weights_RL = box_weights(boxes_R4, self.grid).to(visual.full_VLE.dtype)
        return torch.einsum("rl,rle->re", weights_RL, select_views(visual.full_VLE, view_R))

    def name_logits(self, means_RE: Tensor, names_NE: Tensor) -> Tensor:
        """Return the logits [R, N] of names for regions: similarity with the names' embeddings."""
        return self.name_scale * (means_RE @ F.normalize(names_NE - self.center_E, dim=-1).to(means_RE.dtype).T)

    def prefix(self, visual: Visual, views_BK: Tensor, layout: ViewLayout | None = None) -> Tensor:
        """Lay out the visual tokens and indicators [B, P, E] of rows, padded on the right to the longest.

        Args:
            visual: of all views.
            views_BK: numbers of the views of each row, -1 behind the last where a row has fewer.
            layout: of the views; None where each is an image of its own. Views within the text are left out.
        """
        tokens_BKTE = self.view_tokens(visual, views_BK, layout)
        if layout is None or not views_BK.shape[1]:
            # Without indicators the views only have to be laid end to end; missing ones are last.
            return tokens_BKTE.flatten(1, 2)
        # An id of -1 reads any row of the table: its embedding is not among those that are picked below.
        embedded_BKIE = self.language_model.get_input_embeddings()(layout.before_BKI.clamp(min=0))
        is_view_BKT = ((views_BK >= 0) & ~layout.in_text_BK)[..., None].expand(tokens_BKTE.shape[:3])
        is_token_BKP = torch.cat([layout.before_BKI >= 0, is_view_BKT], dim=2)
        whole_BKPE = torch.cat([embedded_BKIE.to(tokens_BKTE.dtype), tokens_BKTE], dim=2)
        lengths_B = self.prefix_lengths(views_BK, layout)
        is_prefix_BP = torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None]
        padded_BPE = whole_BKPE.new_zeros(*is_prefix_BP.shape, self.width)
        return padded_BPE.masked_scatter(is_prefix_BP[..., None], whole_BKPE[is_token_BKP])

    def view_tokens(self, visual: Visual, views_BK: Tensor, layout: ViewLayout | None = None) -> Tensor:
        """Return the visual tokens [B, K, T, E] of the views of rows, as the language model reads them."""
        # Rows with fewer views read view 0 behind their last one, and it is masked out.
        tokens_BKTE = self._to_embeddings(visual.tokens_VTE[views_BK.clamp(min=0)])
        if self.settings.visual_positions:
            image_BK = torch.arange(views_BK.shape[1], device=views_BK.device) if layout is None else layout.image_BK
            tokens_BKTE = tokens_BKTE + self.view_position_TE + self.image_index_KE[image_BK][..., None, :]
        return tokens_BKTE

    def prefix_lengths(self, views_BK: Tensor, layout: ViewLayout | None = None) -> Tensor:
        """Count the visual tokens and indicators [B] in front of the text of each row; see `prefix`."""
        is_view_BK = views_BK >= 0 if layout is None else (views_BK >= 0) & ~layout.in_text_BK
        lengths_B = is_view_BK.sum(dim=1) * self.connector.num_tokens
        return lengths_B if layout is None else lengths_B + (layout.before_BKI >= 0).sum(dim=(1, 2))

    def embed(
        self,
        ids_BT: Tensor,
        visual: Visual,
        views_BK: Tensor,
        regions: RegionPrompts | None = None,
        layout: ViewLayout | None = None,
    ) -> Tensor:
        """Embed token ids [B, T]; images and regions overwrite their tokens, and phrase maps are added.

        Args:
            ids_BT: token ids. visual: of all views. views_BK: of each row, see `prefix`.
            regions: of the region tokens, row by row.
            layout: of the views; None where each is an image of its own, in front of the text.
        """
        # Slots have no row in the table; they are overwritten below.
        embedded_BTE = self.language_model.get_input_embeddings()(ids_BT.clamp(min=0))
        if self.phrase_maps is not None and views_BK.shape[1]:
            maps_BKTL = self._maps(embedded_BTE, visual, views_BK)
            visible_BKT = find_images_before(ids_BT, views_BK, layout, tokens_per_view=self.connector.num_tokens)
            embedded_BTE = embedded_BTE + self.phrase_maps(maps_BKTL, visible_BKT).to(embedded_BTE.dtype)
        if layout is not None:
            # Behind the maps: a visual token has none, in the text as in front of it.
            tokens_NTE = self.view_tokens(visual, views_BK, layout)[layout.in_text_BK & (views_BK >= 0)]
            is_slot_BT1 = (ids_BT == SLOT)[..., None]
            embedded_BTE = embedded_BTE.masked_scatter(is_slot_BT1, tokens_NTE.to(embedded_BTE.dtype))
        is_region = ids_BT == self.region_id
        vectors_RE = self.embed_regions(visual, views_BK, is_region.nonzero()[:, 0], regions, layout)
        if vectors_RE is None:
            return embedded_BTE
        # The mask's positions are filled row by row, the order of `RegionPrompts`.
        return embedded_BTE.masked_scatter(is_region[..., None], vectors_RE.to(embedded_BTE.dtype))

    def embed_regions(
        self,
        visual: Visual,
        views_BK: Tensor,
        row_R: Tensor,
        regions: RegionPrompts | None,
        layout: ViewLayout | None = None,
    ) -> Tensor | None:
        """Return the embeddings [R, E] that overwrite the tokens of regions; None where tokens keep theirs.

        Args:
            row_R: row of each region. Others: see `embed`.
        """
        if self.settings.regions == "text" or regions is None:
            return None
        if self.region_reader is not None:
            image_BK = torch.arange(views_BK.shape[1], device=row_R.device).expand_as(views_BK)
            image_BK = image_BK if layout is None else layout.image_BK
            vectors_RE = self.region_reader.read_prompts(visual.tower_VLD, views_BK, image_BK, row_R, regions)
        elif len(regions.boxes_R4):
            vectors_RE = self.region_means(visual, regions.boxes_R4, views_BK[row_R, regions.image_R])
        else:
            return None
        return self._to_embeddings(vectors_RE) + self.region_E

    def _to_embeddings(self, vectors: Tensor) -> Tensor:
        """Return what the language model reads of vectors [..., E] in the space of names, around their center."""
        if not self.settings.visual_words:
            return self.visual_gain * vectors
        # As for the maps, the alignment loss alone decides what is seen: answers of a large language model would undo
        # it within a few hundred steps.
        return self.read_words(vectors.detach())

    def read_words(self, vectors: Tensor) -> Tensor:
        """Mix the embeddings of the names that vectors [..., E] resemble, by the softmax of alignment.

        A mean of embeddings lies where the language model has seen text; other vectors it would have to learn to read.
        Source: the connector of AlignVLM (arXiv 2502.01341), whose softmax is over the vocabulary.
        """
        # In float32: half precision would round away the names between which a softmax decides.
        with torch.autocast(vectors.device.type, enabled=False):
            similarities = vectors.float() @ F.normalize(self.words_NE, dim=-1).T
            return (self.name_scale.detach().float() * similarities).softmax(dim=-1) @ self.words_NE

    def _maps(self, embedded_BTE: Tensor, visual: Visual, views_BK: Tensor) -> Tensor:
        """Return the similarity maps [B, K, T, L] of tokens in each image."""
        # The alignment loss alone decides what a patch means: the maps give it no gradient.
        full_VLE = visual.full_VLE.detach()
        direction_BTE = F.normalize(embedded_BTE.detach() - self.center_E, dim=-1)
        full_BKLE = select_views(full_VLE, views_BK.clamp(min=0).flatten()).unflatten(0, views_BK.shape)
        return torch.einsum("bte,bkle->bktl", direction_BTE.to(full_BKLE.dtype), full_BKLE)

    def hidden_states(
        self,
        visual: Visual,
        views_BK: Tensor,
        texts: PackedTexts,
        regions: RegionPrompts | None = None,
        layout: ViewLayout | None = None,
    ) -> Tensor:
        """Return the last hidden states [B, T, E] of packed texts, each as if it stood alone behind its images."""
        lengths_B, counts_B = self.prefix_lengths(views_BK, layout), (views_BK >= 0).sum(dim=1)
        if regions is None:
            # Empty, not None: a region encoder then still runs, and its weights get a gradient of zero.
            empty = torch.zeros(0, 4, device=views_BK.device)
            regions = RegionPrompts(empty, torch.zeros(0, dtype=torch.long, device=views_BK.device))
        states_BTE: Tensor | None = None
        self._router_losses = {}
        row_R = (texts.ids_BT == self.region_id).nonzero()[:, 0][: len(regions.boxes_R4)]
        if _is_sharded(self.language_model):
            # Each pass gathers the sharded weights, so that all processes must take equally many: one.
            groups = [torch.arange(len(lengths_B), device=lengths_B.device)]
        else:
            # Rows with prefixes of one length together: padding costs as much as visual tokens do.
            groups = [(lengths_B == length).nonzero()[:, 0] for length in lengths_B.unique()]
        for rows in groups:
            count = int(counts_B[rows].max())
            of_rows = torch.isin(row_R, rows)
            part = texts.select(rows)
            part_regions = regions.select(of_rows)
            part_layout = layout.select(rows, count) if layout is not None else None
            states = self._row_states(visual, views_BK[rows, :count], part, part_regions, part_layout)
            if states_BTE is None:
                states_BTE = states.new_zeros(*texts.ids_BT.shape, states.shape[-1])
            if self.settings.experts is not None and self.training and torch.is_grad_enabled():
                # The routers' losses are means over a pass: by their rows, passes add up to one of the whole batch.
                share = len(rows) / len(views_BK)
                for name, value in pop_router_losses(self.language_model, self.settings.experts).items():
                    self._router_losses[name] = self._router_losses.get(name, 0.0) + share * value
            # Rows are cut to their longest text; what lies behind stays 0, and no loss reads it.
            index_T = torch.arange(states.shape[1], device=rows.device)
            states_BTE = states_BTE.index_put((rows[:, None], index_T), states)
        assert states_BTE is not None, "a batch has rows"
        return states_BTE

    def _row_states(
        self,
        visual: Visual,
        views_BK: Tensor,
        texts: PackedTexts,
        regions: RegionPrompts,
        layout: ViewLayout | None,
    ) -> Tensor:
        """Return the hidden states of the texts of rows, in one pass."""
        prefix_BPE = self.prefix(visual, views_BK, layout)
        text_BTE = self.embed(texts.ids_BT, visual, views_BK, regions, layout)
        width = prefix_BPE.shape[1]
        lengths_B = self.prefix_lengths(views_BK, layout)
        mask_BLL, position_BL = attention_and_positions(texts, lengths_B, width)
        with quick_backward(position_BL):
            output = self.language_model.base_model(
                inputs_embeds=torch.cat([prefix_BPE.to(text_BTE.dtype), text_BTE], dim=1),
                # With four dimensions transformers takes a mask as it is; of two it would make a causal one.
                attention_mask=mask_BLL[:, None],
                position_ids=position_BL,
                use_cache=False,
            )
        return output.last_hidden_state[:, width:]

    def pop_router_losses(self) -> dict[str, Tensor]:
        """Take out the weighted losses of the experts' routers in the last pass of training; none if it is dense."""
        losses, self._router_losses = self._router_losses, {}
        return losses

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states."""
        # The head by itself: logits of every position would be the largest tensor of a training step.
        return self.language_model.get_output_embeddings()(states)

    def locate(self, visual: Visual, view_N: Tensor, *, states_NE: Tensor, ids_NT: Tensor, read_NT: Tensor) -> Tensor:
        """Return the boxes [N, 4] that answers point at, in [0, 1] of their views.

        Args:
            visual: of all views. view_N: the view of each box.
            states_NE: hidden state that predicts the region token.
            ids_NT: tokens of the row. read_NT: those of the conversation in front of the region token.

        Raises:
            UserError: the model has no box head.
        """
        phrases_NE = self.point(states_NE, ids_NT, read_NT)
        assert self.box_head is not None
        return self.box_head(visual.full_VLE, phrases_NE, view_N)

    def point(self, states_NE: Tensor, ids_NT: Tensor, read_NT: Tensor) -> Tensor:
        """Return the phrases [N, E] that the next boxes of answers are for; arguments as of `locate`."""
        if self.box_head is None:
            raise UserError("box_head: this model has none; it writes coordinates as text")
        # Slots of images have no row in the table; `read_NT` keeps the head from attending to what they get here.
        embedded_NTE = self.language_model.get_input_embeddings()(ids_NT.clamp(min=0)) - self.center_E
        return self.box_head.point(states_NE.to(embedded_NTE.dtype), embedded_NTE, read_NT)

    def locate_among(self, visual: Visual, views_K: Tensor, phrase_E: Tensor) -> PhraseMatch:
        """Find the view that shows a phrase best, and the phrase's box in it.

        Similarities with aligned patches are comparable between images, so the best match of all decides; and its score
        tells a phrase that is shown from one that is not.

        Args:
            visual: of all views. views_K: views to look in. phrase_E: of `point`.
        """
        assert self.box_head is not None
        return self.box_head.match_best(visual.full_VLE, phrase_E, views_K)


def _check_assembly(assembly: AssemblyOptions, tower: ImageEncoder, connector: Connector) -> None:
    """Raise UserError where views of other pixels or tokens are planned than tower and connector have."""
    preprocess = tower.preprocess
    for name, value, expected in (
        ("tiling.tile", assembly.tiling.tile, preprocess.side),
        ("tokens_per_view", assembly.tokens_per_view, connector.num_tokens),
    ):
        if value != expected:
            raise UserError(
                f"field model.assembly.{name}: not that of tower and connector (got {value}); expected {expected}"
            )


def _is_sharded(model: nn.Module) -> bool:
    """Return whether a module is of FSDP2."""
    # Not imported: that takes a second, and where it is not loaded nothing is sharded.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules())
