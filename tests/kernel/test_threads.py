"""The same bits for any number of threads; callers at once; forked children."""

from __future__ import annotations

import multiprocessing.connection
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.kernel.library import PATH, ROOT, Library, cast
from tests.kernel.operations import Loss
from tests.support import progress

# Large enough that the pool takes part: row by row, in lanes, in columns; with and without streaming stores.
SHAPES = ((64, 20000), (140, 17001), (100000, 10), (3, 21, 9000), (300, 1000))


def everything(loss: Loss) -> list[bytes]:
    one = cast(np.ones(loss.reduced), loss.dtype)
    direction = loss.logits
    results = [*loss.forward(), loss.backward(one), *loss.double_backward(direction, one)]
    if not loss.suffix:
        results += loss.value_and_grad()
    if loss.weight is not None:
        results.append(loss.weight_grad(one))
    return [result.tobytes() for result in results]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_for_any_number_of_threads(library: Library, shape, dtype: str) -> None:
    random = np.random.default_rng(5)
    rows = (shape[0], *shape[2:])
    target = np.where(random.random(rows) < 0.1, -100, random.integers(0, shape[1], rows))
    logits = cast(random.normal(size=shape), dtype)
    weight = cast(random.random(shape[1]), "float32")
    loss = Loss(library, logits, target, weight, label_smoothing=0.1)
    assert library.set_threads(1) == 1
    expected = everything(loss)
    for threads in (2, 3, 8, 2, 1):
        assert library.set_threads(threads) == threads
        assert everything(loss) == expected, f"{threads} threads"


def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(64, 9000)).astype(np.float32), random.integers(0, 9000, 64)


def test_callers_at_once(library: Library) -> None:
    library.set_threads(3)
    losses = [Loss(library, *make(seed)) for seed in range(4)]
    expected = [everything(loss) for loss in losses]
    wrong = []

    def repeat(index: int) -> None:
        for _ in range(10):
            if everything(losses[index]) != expected[index]:
                wrong.append(index)

    callers = [threading.Thread(target=repeat, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        assert join(caller), "the callers wait for each other"
    assert not wrong


def join(thread: threading.Thread) -> bool:
    """Waits for the end; False where it does not come nearer."""

    def ended(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    return progress.wait(ended, progress.Watch(lambda: [os.getpid()]))


def child(answer: multiprocessing.connection.Connection) -> None:
    answer.send(everything(Loss(Library(), *make(0))))


def test_a_forked_child_computes_too(library: Library) -> None:
    """The pool's workers do not survive fork; the child must not wait for them."""
    library.set_threads(3)
    expected = everything(Loss(library, *make(0)))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender,))
    process.start()
    sender.close()
    try:
        assert progress.wait(receiver.poll, progress.Watch(lambda: [process.pid]))
        assert receiver.recv() == expected
    finally:
        process.kill()
        process.join()


def waiting(
    library: Library, finished: int, idle_milliseconds: int = 2**31 - 1
) -> threading.Thread:
    """A thread that waits until more than `finished` operations have run; one that hangs ends with the tests."""
    arguments = (finished, idle_milliseconds)
    thread = threading.Thread(target=library.handle.MsCeWait, args=arguments, daemon=True)
    thread.start()
    return thread


def test_waiting_ends_with_an_operation(library: Library) -> None:
    """Whichever thread called it, and also where it had ended before."""
    finished = library.handle.MsCeFinished()
    loss = Loss(library, *make(0))
    caller = threading.Thread(target=loss.forward)
    waiter = waiting(library, finished)
    caller.start()
    assert join(caller)
    assert join(waiter), "nobody woke the waiting thread"
    assert library.handle.MsCeFinished() == finished + 1
    assert join(waiting(library, finished))


def test_waiting_for_nothing_ends(library: Library) -> None:
    assert join(waiting(library, library.handle.MsCeFinished(), idle_milliseconds=1))


def test_a_refused_operation_ends_the_waiting(library: Library) -> None:
    finished = library.handle.MsCeFinished()
    logits, target = make(0)
    with pytest.raises(RuntimeError, match="is outside"):
        Loss(library, logits, np.full_like(target, 9000)).forward()
    assert join(waiting(library, finished))


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("3", 3), ("0", None), ("x", None)])
def test_omp_num_threads_is_respected(value: str, expected: int | None) -> None:
    code = "from tests.kernel.library import Library; print(Library().set_threads(0))"
    environment = {**os.environ, "OMP_NUM_THREADS": value, "MS_CE_LIBRARY": str(PATH)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) == (expected or len(os.sched_getaffinity(0)))


def test_ms_ce_isa_chooses_the_instruction_set(library: Library, isa: str) -> None:
    code = "from tests.kernel.library import Library; print(Library().handle.MsCeIsa().decode())"
    environment = {**os.environ, "MS_CE_ISA": isa, "MS_CE_LIBRARY": str(PATH)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == isa


def test_an_unknown_instruction_set_is_an_error(library: Library) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        library.set_isa("z80")
