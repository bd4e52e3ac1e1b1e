"""FedNE over any exchange: what a server that sees no points runs and writes, and what a client answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, write_json_atomically
from foveate.federated.embedding.account import account
from foveate.federated.embedding.checkpoint import load_state, save_state
from foveate.federated.embedding.client import HANDLERS, ClientData, options_in
from foveate.federated.embedding.fitting import encoder_of
from foveate.federated.embedding.folder import save_encoder
from foveate.federated.embedding.message_kinds import REMOTE_KINDS
from foveate.federated.embedding.options import EXACT, LOCAL, METHODS, POOLED, EmbeddingOptions
from foveate.federated.embedding.server import State, begin, run_rounds
from foveate.federated.messages import Message, MessageError
from foveate.federated.rounds import Transport
from foveate.metrics.neighbors import as_points


def answer_elsewhere(points_ND: NDArray[np.floating], request: Message, client: int) -> Message:
    """A client's answer to a server elsewhere.

    Raises:
        MessageError: for a kind that no client answers over a network, such as all its map positions.
        UserError: data that are no points, or hold NaN.
    """
    if request.kind not in REMOTE_KINDS:
        raise MessageError(f"'{request.kind}' is not answered over a network")
    data = ClientData(as_points(points_ND, what="the data").astype(options_in(request).precision))
    return HANDLERS[request.kind](data, request, client)


def run_server(exchange: Transport, options: EmbeddingOptions, out: Path, *, at_least: int = 1) -> dict[str, Any]:
    """Rounds over an exchange, `state.safetensors` after each, then `model` and result.json; goes on after a kill.

    A finished run leaves no state: whether the clients' data are the same at the next call cannot be known here.

    Raises:
        UserError: for a method without an exchange, or a folder with another run.
    """
    if options.method in (LOCAL, POOLED, EXACT):
        raise UserError(f"method '{options.method}' cannot run over a network: {METHODS[options.method]}")
    with FolderLock(out, purpose="federated embed over a network"):
        kept = out / "state.safetensors"

        def after(now: State) -> None:
            save_state(now, options, kept)

        state = load_state(kept, options)
        if state is None:
            state = begin(exchange, options, at_least=at_least)
        elif state.round < options.rounds:
            state.again += 1
        save_state(state, options, kept)
        run_rounds(exchange, options, state, after=after, at_least=at_least)
        about = {
            "widths": [state.features, *options.hidden, options.dimensions],
            "precision": options.precision,
            "method": options.method,
            "rounds": options.rounds,
            "clients": len(state.sizes),
            "options": options.model_dump(mode="json"),
        }
        save_encoder(encoder_of(state, options, state.encoder, None, "cpu"), out / "model", about=about)
        result = _result(exchange, options, state)
        write_json_atomically(out / "result.json", result)
        kept.unlink(missing_ok=True)
    return result


def _result(exchange: Transport, options: EmbeddingOptions, state: State) -> dict[str, Any]:
    """The run's result without a map: the server has no points to place."""
    names = {client: exchange.name(client) for client in state.sizes}
    sent = {way: sum(entry[f"bytes_{way}"] for entry in state.history) for way in ("up", "down")}
    shown = ("round", "rate", "attraction", "repulsion", "foreign", "outside", "r2")
    drawn = {
        "method": options.method,
        "what": METHODS[options.method],
        "quality": {},
        "clients": [{"name": names[client], "points": size} for client, size in state.sizes.items()],
        "notes": state.notes,
        "exchanged": exchange.log.table(),
        "hidden": account(options, state),
        "bytes_up": sent["up"],
        "bytes_down": sent["down"],
        "seconds": round(sum(entry["seconds"] for entry in state.history), 2),
        "history": [{name: entry[name] for name in shown} for entry in state.history],
        "map": {"places": [], "owners": [], "labels": None},
    }
    return {
        "kind": "federated_embed",
        "method": options.method,
        "data": {"split": "a client each", "features": state.features},
        "clients": {names[client]: size for client, size in state.sizes.items()},
        "neighbors": options.neighbors,
        "maps": [drawn],
        "options": options.model_dump(mode="json"),
    }
