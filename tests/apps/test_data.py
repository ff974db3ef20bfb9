"""The data of the digits app: sources, splits and faults."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "apps/digits"))

from digits import data  # noqa: E402 (an app is no package of ours)

CONFIG = {
    "data": "digits",
    "num-devices": 10,
    "partition": "iid",
    "dirichlet-alpha": 0.5,
    "classes-per-device": 3,
    "faults": "",
}


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def images_and_labels(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up images of MNIST's size."""
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (number, 28, 28)), generator.integers(0, 10, number)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "classes"])
def test_the_devices_share_all_examples_without_overlap(partition):
    shares = [data.partition(CONFIG | {"partition": partition}, device) for device in range(10)]
    assert sum(map(len, shares)) == len(data.load("digits").devices)


def test_by_class_a_device_has_as_many_classes_as_it_should():
    share = data.partition(CONFIG | {"partition": "classes"}, 0)
    assert len(np.unique(share.y)) == 3


def test_an_unknown_partition_is_told():
    with pytest.raises(ValueError, match="partition = 'none'"):
        data.partition(CONFIG | {"partition": "none"}, 0)


def test_owner_test_and_devices_are_split_once():
    split = data.load("digits")
    assert len(split.devices) > 3 * len(split.owner)
    assert len(split.devices) + len(split.owner) + len(split.test) == 1797


def test_a_folder_of_idx_files_is_read(tmp_path):
    for name, number in (("train", 60), ("t10k", 30)):
        images, labels = images_and_labels(number)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    split = data.load(str(tmp_path))
    assert split.devices.x.shape == (60, 28, 28)
    assert split.devices.x.max() <= 1


def test_a_torchvision_data_set_is_read_by_name(tmp_path, monkeypatch):
    library = torch.library.Library("torchvision", "DEF")  # its wheel has no operators for the CPU
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    raw = tmp_path / ".cache/torchvision/MNIST/raw"
    raw.mkdir(parents=True)
    for name, number in (("train", 60), ("t10k", 30)):
        images, labels = images_and_labels(number)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("torchvision:MNIST").devices.x.shape == (40, 28, 28)


@pytest.mark.parametrize("fault", sorted(data.FAULTS))
def test_a_fault_spoils_one_device_only(fault):
    honest, spoilt = data.partition(CONFIG, 3), data.partition(CONFIG | {"faults": f"3:{fault}"}, 3)
    assert not (np.array_equal(honest.x, spoilt.x) and np.array_equal(honest.y, spoilt.y))
    other = data.partition(CONFIG | {"faults": f"3:{fault}"}, 4)
    np.testing.assert_array_equal(other.x, data.partition(CONFIG, 4).x)
