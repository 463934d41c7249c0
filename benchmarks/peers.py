"""Who is compared, and in which Python each lives."""

from __future__ import annotations

from dataclasses import dataclass

from cases import Case

MINDSPORE, TORCH, JAX = (f"adapters.{name}_losses" for name in ("mindspore", "torch", "jax"))


@dataclass(frozen=True)
class Peer:
    """`memory` is what the process holds after forward and backward, in multiples of the logits'
    bytes, as measured for float32 rows: it decides what fits side by side, and is no result."""

    name: str
    adapter: str
    mode: str
    memory: float
    implementation: str = ""
    threads: int | None = None

    @property
    def own_environment(self) -> bool:
        """True where torch and JAX live: not beside MindSpore, which needs an older numpy."""
        return self.adapter != MINDSPORE

    def settings(self) -> dict[str, str]:
        return {"adapter": self.adapter, "mode": self.mode, "implementation": self.implementation}


OURS = "ms_ce graph"
OURS_PYNATIVE = "ms_ce pynative"
OURS_ONE_THREAD = "ms_ce graph, one thread"
MINDSPORE_GRAPH = "mindspore graph"
MINDSPORE_PYNATIVE = "mindspore pynative"
TORCH_EAGER = "torch eager"
TORCH_COMPILE = "torch.compile"

PEERS = (
    Peer(OURS, MINDSPORE, "graph", 2.2, "cpu"),
    Peer(OURS_PYNATIVE, MINDSPORE, "pynative", 2.2, "cpu"),
    Peer(OURS_ONE_THREAD, MINDSPORE, "graph", 2.2, "cpu", threads=1),
    Peer("ms_ce composed graph", MINDSPORE, "graph", 48, "composed"),
    Peer("ms_ce composed pynative", MINDSPORE, "pynative", 16, "composed"),
    Peer(MINDSPORE_GRAPH, MINDSPORE, "graph", 28.5, "mindspore"),
    Peer(MINDSPORE_PYNATIVE, MINDSPORE, "pynative", 15.5, "mindspore"),
    Peer(TORCH_EAGER, TORCH, "eager", 4.2),
    Peer(TORCH_COMPILE, TORCH, "compile", 4.2),
    Peer("jax.jit optax", JAX, "jit", 2.2),
)
CORE = (OURS, OURS_PYNATIVE, MINDSPORE_GRAPH, TORCH_EAGER, "jax.jit optax")


def takes_part(peer: Peer, case: Case) -> bool:
    if peer.threads is not None:
        return case.one_thread
    if peer.implementation == "composed":
        return case.composed
    return case.every_peer or peer.name in CORE


FLOOR = (
    "floor"  # what MindSpore takes for a gradient of one operator; no loss, and nothing to check
)


def computations(peer: Peer) -> tuple[str, ...]:
    """Only the cpu backend has several ways to make a gradient: unasked, in two passes, by the fused function."""
    if peer.implementation != "cpu":
        return "forward", "forward_backward"
    several = ("forward", "forward_backward", "two_passes", "value_and_grad")
    return (*several, FLOOR) if peer.name == OURS_PYNATIVE else several
