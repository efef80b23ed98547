"""Map a function over images in worker processes, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from fx_d2.structures import FXError

T = TypeVar("T")
R = TypeVar("R")


def map_images(work: Callable[[T], R], images: Sequence[T], *, workers: int, name: str) -> Iterator[R]:
    """Yield `work(image)` for each image, in order.

    Args:
        work: called in the workers; it and its arguments and results are pickled.
        images: what is known of each image.
        workers: worker processes; 0 = main process only.
        name: label of the progress bar.

    Raises:
        FXError: a worker died, for example killed for its memory. (multiprocessing.Pool would wait for it forever.)
    """
    bar = tqdm(total=len(images), unit="image", desc=name, disable=None)
    pool = ProcessPoolExecutor(workers) if workers > 0 else None
    try:
        for result in pool.map(work, images, chunksize=16) if pool else map(work, images):
            yield result
            bar.update()
    except BrokenProcessPool:
        problem = "a worker process died: out of memory, or a decoder crashed on a damaged file"
        raise FXError(f"{name}: {problem}; try fewer --workers") from None
    finally:
        bar.close()
        if pool:
            pool.shutdown(cancel_futures=True)
