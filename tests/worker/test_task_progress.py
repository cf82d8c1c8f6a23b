"""The progress of a task: the mean of its images; previews are made only for watchers."""

import io

import numpy as np
import pytest
from PIL import Image

from hidream.types import Step
from hidream.worker.progress import PREVIEW_SIDE_PX, TaskProgress, preview_jpeg


def tell(progress, i, done, preview=None):
    progress.listener(i).on_step(Step(done, 10, preview))


def test_it_is_the_mean_of_the_images_and_nothing_is_told_twice():
    progress = TaskProgress(2)
    assert progress.take_step() is None
    tell(progress, 0, 4)
    assert progress.take_step() == Step(2, 10)
    tell(progress, 1, 1)
    assert progress.take_step() is None, "half a step more"
    tell(progress, 1, 10)
    assert progress.take_step() == Step(7, 10)


def test_what_is_left_is_said_of_all_images_together():
    progress = TaskProgress(2)
    assert progress.left == 1
    tell(progress, 0, 10)
    assert progress.left == 0.5
    tell(progress, 1, 5)
    assert progress.left == 0.25
    tell(progress, 1, 10)
    assert progress.left == 0


def test_previews_are_wanted_while_somebody_watches_and_one_at_a_time():
    progress = TaskProgress(1)
    listener, image = progress.listener(0), np.zeros((4, 4, 3), np.uint8)
    assert not listener.wants_preview(1)
    progress.watched = True
    assert listener.wants_preview(1)
    tell(progress, 0, 1, image)
    assert not listener.wants_preview(2), "the first has not been taken"
    step = progress.take_step()
    assert (step.done, step.of) == (1, 10)
    assert step.preview is image
    assert listener.wants_preview(3)
    progress.watched = False
    assert not listener.wants_preview(4)


def test_a_preview_is_of_the_first_image_that_is_not_finished():
    progress = TaskProgress(2)
    progress.watched = True
    tell(progress, 0, 4)
    assert progress.listener(0).wants_preview(5)
    assert not progress.listener(1).wants_preview(1)
    tell(progress, 0, 10)
    assert progress.listener(1).wants_preview(2)


@pytest.mark.parametrize(("shape", "size"), [((64, 96), (96, 64)), ((192, 600), (200, 64)), ((257, 1), (1, 129))])
def test_a_preview_becomes_a_small_file(shape, size):
    data = preview_jpeg(np.full((*shape, 3), 99, np.uint8), 7, "v1")
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", size)
    assert max(image.size) <= PREVIEW_SIDE_PX
    assert abs(int(np.asarray(image).mean()) - 99) <= 1
