"""Data loader: images of a shard, and labels where a task may open them, as training batches.

What a batch holds follows from (seed parts, epoch, image index) alone: neither the number of workers nor
what is in memory already, nor the images before it, change a pixel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import get_context
from threading import Lock
from typing import Any

import torch

from common.data.check import check_labelled, required_table
from common.data.classes import IGNORE, ClassTable
from common.data.decoded import DecodedCache, decoded_key
from common.data.images import Bytes, entry_image, entry_pair, without_labels
from common.data.manifest import Shard
from common.data.transforms import JointTransform, image_tensor
from common.errors import UserError
from common.seeds import torch_generator
from common.settings.network import Transforms

# bytes of decoded images and labels that are kept: 64 of Cityscapes
_MEMORY = 512 * 2**20
# Batches that are made while the one before them is being used
_AHEAD = 1

Restyle = Callable[[Bytes, torch.Generator], Bytes]
# An epoch, and the image that is looked at in it
_Visit = tuple[int, int]
_Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ImageBatch:
    """Images of one step, on one device.

    images: float32 [B, 3, h, w] in 0..1.
    labels: int64 [B, h, w], train ids with 255 = ignore; None where labels are closed.
    indices: places in the shard, [B].
    valid: bool [B, h, w], False where padding or a turned corner lies instead of the image; only where
        there are no labels, whose 255 says the same.
    plain: float32 [B, 3, h, w], the same cuts before colours and sharpness were changed, where asked for.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    indices: list[int]
    valid: torch.Tensor | None = None
    plain: torch.Tensor | None = None


def _batch_ends(images: int, batch: int) -> list[int]:
    """Return where each batch of an epoch ends; an image that would be alone in the last gets its neighbor's company.

    One image has a batch norm measure its own few features, and half the layers of ASPP nothing at all.
    """
    ends = [*range(batch, images, batch), images]
    if batch > 2 and images % batch == 1 and len(ends) > 1:
        ends[-2] -= 1
    return ends


class ImageDataset:
    """The images of a shard as training batches.

    Args:
        shard: what to read.
        transforms: how images are changed before they are stacked.
        seed_parts: the seed of the run and what else tells these draws apart: (seed, site).
        with_labels: whether labels may be opened. If not, their paths are dropped here and now: nothing
            below can reach them.
        table: what the values of label files mean; may be None where labels are closed.
        device: where batches go; to CUDA by way of pinned memory.
        workers: threads that prepare the next batch; 0: none, it is made when asked for.
        readers: processes that do so in their place; 0: threads do.
        decoded: where decoded images stay over rounds; None: nowhere.
        memory: bytes of decoded images and labels that are kept; what does not fit is decoded anew.
        plain: whether batches also hold the cuts in their own colours.
        masks: gives train ids uint8 [H, W] by index in the place of labels, which stay closed.
        restyle: changes the decoded image uint8 [H, W, 3] before all else, with a generator of its own.

    Raises `UserError` where labels are to be opened and an image has none, or there is no table.
    """

    def __init__(
        self,
        shard: Shard,
        transforms: Transforms,
        seed_parts: tuple[int | str, ...],
        with_labels: bool,
        table: ClassTable | None,
        *,
        device: torch.device | str = "cpu",
        workers: int = 1,
        readers: int = 0,
        decoded: DecodedCache | None = None,
        memory: int = _MEMORY,
        plain: bool = False,
        masks: Callable[[int], Bytes] | None = None,
        restyle: Restyle | None = None,
    ) -> None:
        if with_labels:
            check_labelled(shard, required_table(shard, table), "this task trains with labels")
        else:
            shard = without_labels(shard)
        self.shard = shard
        self.with_labels = with_labels
        self._table = table
        self._transform = JointTransform(transforms)
        self._seed, self._names = int(seed_parts[0]), seed_parts[1:]
        self._device = torch.device(device)
        self._workers = workers
        self._readers = readers
        self._decoded = decoded
        self._restyle = restyle
        self._plain = plain
        self._masks = masks
        self._room = memory
        self._kept: dict[int, tuple[Bytes, Bytes | None]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.shard)

    def image(self, index: int) -> Bytes:
        """Return a picture as it is on disk, uint8 [H, W, 3]; not to be written to."""
        return self._read(index)[0]

    def label(self, index: int) -> Bytes:
        """Return train ids as they are on disk, uint8 [H, W]; raises `PermissionError` where closed."""
        label = self._read(index)[1] if self.with_labels else None
        if label is None:
            raise PermissionError(f"the labels of {self.shard.name} are closed: this task may not open them")
        return label

    def _order(self, epoch: int) -> list[int]:
        """Return the images in the order of an epoch: each of them, exactly once."""
        return torch.randperm(len(self), generator=self._generator("order", epoch)).tolist()

    def batches(self, steps: int, batch: int, first_epoch: int = 0, skip: int = 0) -> Iterator[ImageBatch]:
        """Yield ``steps`` batches, epoch after epoch from ``first_epoch`` on.

        An epoch has every image once; its last batch may be smaller, but holds one image only where there is no
        other (`_batch_ends`). ``skip`` batches come first and are left out,
        unread: who goes on where another call stopped reads every image in every epoch, however few batches a call
        has.
        """
        past, begun = divmod(skip, -(-len(self) // max(batch, 1)))
        plan = (visits for epoch in count(first_epoch + past) for visits in self._plan(epoch, batch))
        return self._stream(islice(plan, begun, begun + steps))

    def _plan(self, epoch: int, batch: int) -> Iterator[list[_Visit]]:
        if batch < 1:
            raise ValueError(f"a batch of {batch} images; expected at least 1")
        order = self._order(epoch)
        if batch == 2 and len(order) % 2 and len(order) > 1:
            order.append(order[0])  # no batch has an image to spare: the first one comes twice
        start = 0
        for end in _batch_ends(len(order), batch):
            yield [(epoch, index) for index in order[start:end]]
            start = end

    def _stream(self, plan: Iterator[list[_Visit]]) -> Iterator[ImageBatch]:
        if not (self._workers or self._readers):
            for visits in plan:
                yield self._stack(visits, [self._sample(visit) for visit in visits])
            return
        pool: Executor = ThreadPoolExecutor(self._workers or 1, thread_name_prefix="pictures")
        sample: Callable[[_Visit], Any] = self._sample
        if self._readers:
            # a fork has the images' paths, and torch, at once; it computes in one thread and never touches a GPU
            fork = get_context("fork")
            pool = ProcessPoolExecutor(self._readers, fork, _become_reader, (self,))
            sample = _read_for_parent
        waiting: deque[tuple[list[_Visit], list[Future[Any]]]] = deque()
        ahead = _AHEAD
        try:
            for visits in plan:
                # enough for every reader to be at work while a batch is used
                ahead = max(_AHEAD, -(-2 * self._readers // len(visits)))
                waiting.append((visits, [pool.submit(sample, visit) for visit in visits]))
                if len(waiting) > ahead:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:  # also where the reader stops early: no thread goes on decoding for nobody
            pool.shutdown(cancel_futures=True)

    def _collect(self, visits: list[_Visit], samples: list[Future[Any]]) -> ImageBatch:
        found = [sample.result() for sample in samples]
        if self._readers:  # pixels came as bytes: shared memory is scarce in a container
            found = [tuple(map(torch.from_numpy, arrays)) for arrays in found]
        return self._stack(visits, found)

    def _sample(self, visit: _Visit) -> _Sample:
        """Return image uint8 [3, h, w], its plain form, and label: 0, and 255 outside the image, where closed."""
        epoch, index = visit
        pixels, label = self._read(index)
        if self._restyle is not None:
            pixels = self._restyle(pixels, self._generator("style", epoch, index))
        image = image_tensor(pixels)
        marks = torch.zeros(image.shape[1:], dtype=torch.uint8) if label is None else torch.from_numpy(label)
        image, plain, changed = self._transform.views(image, marks, self._generator("image", epoch, index))
        assert changed is not None
        return image, plain, changed

    def _stack(self, visits: list[_Visit], samples: Sequence[_Sample]) -> ImageBatch:
        indices = [index for _, index in visits]
        first = samples[0][0].shape
        for index, (image, _, _) in zip(indices, samples, strict=True):
            if image.shape != first:
                raise UserError(
                    f"The images of one batch differ in size: {self.shard.image_path(indices[0])} has "
                    f"{first[2]} x {first[1]} pixels and {self.shard.image_path(index)} {image.shape[2]} x "
                    f"{image.shape[1]}; set transforms.crop to 'random' or 'resized', or the batch to 1."
                )
        images = self._floats([image for image, _, _ in samples])
        plain = self._floats([plain for _, plain, _ in samples]) if self._plain else None
        marks = self._move(torch.stack([label for _, _, label in samples]))
        if self.with_labels or self._masks is not None:
            return ImageBatch(images, marks.long(), indices, plain=plain)
        return ImageBatch(images, None, indices, marks != IGNORE, plain)

    def _floats(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._move(torch.stack(list(images))).float().div_(255)

    def _move(self, stacked: torch.Tensor) -> torch.Tensor:
        """Bring bytes to the device; they become floats there, four times as large."""
        if self._device.type == "cuda":
            return stacked.pin_memory().to(self._device, non_blocking=True)
        return stacked.to(self._device)

    def _read(self, index: int) -> tuple[Bytes, Bytes | None]:
        """Return an image and its label, decoded once where memory holds them."""
        if index in self._kept:
            return self._kept[index]
        pair = self._decode(index)
        size = sum(pixels.nbytes for pixels in pair if pixels is not None)
        # the first that come stay: images are read in a new order in every epoch, and dropping the oldest would
        # drop just those that come next
        with self._lock:
            if index not in self._kept and size <= self._room:
                self._kept[index] = pair
                self._room -= size
        return pair

    def _decode(self, index: int) -> tuple[Bytes, Bytes | None]:
        if self._masks is not None:
            return self._decode_named(index, None)[0], self._masks(index)
        return self._decode_named(index, self._table if self.with_labels else None)

    def _decode_named(self, index: int, table: ClassTable | None) -> tuple[Bytes, Bytes | None]:
        """Return an image, and its label where there is a table, from the cache or else decoded."""

        def decode() -> tuple[Bytes, Bytes | None]:
            if table is None:
                return entry_image(self.shard, index), None
            return entry_pair(self.shard, index, table)

        if self._decoded is None or not self.shard.image_path(index).is_file():
            return decode()  # which says what is wrong with a file that is not there
        key = decoded_key(self.shard, index, table)
        pair = self._decoded.read(key)
        if pair is None:
            pair = decode()
            self._decoded.write(key, pair)
        return pair

    def _generator(self, *names: str | int) -> torch.Generator:
        return torch_generator(self._seed, "pictures", *self._names, *names)


# In a reader's process, the images that it reads.
_adopted: list[ImageDataset] = []


def _become_reader(images: ImageDataset) -> None:
    torch.set_num_threads(1)
    _adopted[:] = [images]


def _read_for_parent(visit: _Visit) -> tuple[Bytes, ...]:
    return tuple(part.numpy() for part in _adopted[0]._sample(visit))
