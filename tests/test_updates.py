import json
import re
import struct
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load, save

from flower_chain.errors import FormatError
from flower_chain.updates import (
    Arrays,
    ArraySpec,
    Format,
    apply,
    check_finite,
    check_stays_finite,
    difference,
    digest,
    digest_of,
    mean,
    pack,
    unpack,
    weighted_mean,
)

MODEL: Arrays = {
    "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "head.bias": np.array([1.5, -2.0], np.float32),
    "norm.num_batches_tracked": np.array(7, np.int64),
    "mask": np.array([[True, False]]),
}
GOLDEN = (
    b'\x38\x01\0\0\0\0\0\0{"__metadata__":{"format":"flower-chain/1"},'
    b'"norm.num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
    b'"head.bias":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},'
    b'"head.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[16,40]},'
    b'"mask":{"dtype":"BOOL","shape":[1,2],"data_offsets":[40,42]}}   '
    b"\x07\0\0\0\0\0\0\0\0\0\xc0\x3f\0\0\0\xc0"
    b"\0\0\0\0\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40\0\0\xa0\x40\x01\0"
)
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
METADATA = '"__metadata__":{"format":"flower-chain/1"}'

some_array = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
some_arrays = st.dictionaries(st.text(max_size=8), some_array, max_size=5)


def packed(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def one(array: object, dtype: str = "f4") -> Arrays:
    return {"w": np.array(array, dtype)}


def same(left: Arrays, right: Arrays) -> bool:
    return Format.of(left) == Format.of(right) and all(
        np.ascontiguousarray(left[key]).tobytes() == np.ascontiguousarray(right[key]).tobytes()
        for key in left
    )


class TestPack:
    def test_the_bytes_are_these(self) -> None:
        assert pack(MODEL) == GOLDEN
        assert (
            digest(GOLDEN).hex()
            == "39b211153f6cc87091ef20283217cc3ff905e43227f9dd31b6ca8f1f6ee66aca"
        )

    @given(some_arrays, st.randoms())
    def test_the_order_of_the_keys_does_not_matter(self, arrays: Arrays, random: Random) -> None:
        shuffled = list(arrays.items())
        random.shuffle(shuffled)
        assert pack(dict(shuffled)) == pack(arrays)

    @given(some_arrays)
    def test_the_digest_can_do_without_the_bytes(self, arrays: Arrays) -> None:
        assert digest_of(arrays) == digest(pack(arrays))

    @given(some_arrays)
    def test_unpack_gives_the_arrays_back(self, arrays: Arrays) -> None:
        assert same(unpack(pack(arrays)), arrays)

    @given(some_arrays)
    def test_safetensors_reads_the_bytes(self, arrays: Arrays) -> None:
        assert same(load(pack(arrays)), arrays)

    def test_safetensors_writes_the_same_where_no_two_dtypes_are_equally_wide(self) -> None:
        arrays: Arrays = {**MODEL, 'é"\\\n\x1f/\x7f': np.ones((3, 0), np.float16)}
        assert pack(arrays) == save(dict(arrays), {"format": "flower-chain/1"})

    @given(some_arrays)
    def test_the_format_tells_the_size(self, arrays: Arrays) -> None:
        assert Format.of(arrays).nbytes == len(pack(arrays))

    def test_memory_layout_and_byte_order_do_not_matter(self) -> None:
        matrix = np.arange(6, dtype="<f4").reshape(2, 3)
        expected = pack({"w": matrix})
        assert pack({"w": np.asfortranarray(matrix)}) == expected
        assert pack({"w": matrix.astype(">f4")}) == expected
        assert pack({"w": np.repeat(matrix, 2, axis=1)[:, ::2]}) == expected

    def test_any_true_is_one(self) -> None:
        assert pack({"w": np.array([2, 0], np.uint8).view(bool)}) == pack(one([1, 0], "?"))

    @pytest.mark.parametrize("dtype", ["O", "c8", "g", "U3", "S3", "M8[s]", "f4,i4"])
    def test_other_dtypes_are_refused(self, dtype: str) -> None:
        with pytest.raises(FormatError, match="'w' has dtype"):
            pack({"w": np.zeros(2, np.dtype(dtype))})

    @pytest.mark.parametrize("key", ["__metadata__", "\ud800"])
    def test_keys_that_no_file_can_hold_are_refused(self, key: str) -> None:
        with pytest.raises(FormatError, match="rename"):
            pack({key: np.zeros(2)})

    def test_a_header_over_1_mib_is_refused(self) -> None:
        with pytest.raises(FormatError, match="at most 1048576"):
            pack({"k" * 2**20: np.zeros(1)})


class TestUnpack:
    def test_gives_read_only_views(self) -> None:
        array = unpack(GOLDEN)["head.weight"]
        assert not array.flags.writeable
        assert not array.flags.owndata

    @given(st.integers(0, len(GOLDEN) - 1))
    def test_truncated_bytes_are_refused(self, length: int) -> None:
        with pytest.raises(FormatError):
            unpack(GOLDEN[:length])

    def test_trailing_bytes_are_refused(self) -> None:
        with pytest.raises(FormatError, match="bytes where the header tells of"):
            unpack(GOLDEN + b"\0")

    @given(st.binary(max_size=60))
    def test_arbitrary_bytes_are_refused(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            unpack(data)

    @given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
    def test_what_is_read_is_what_would_be_written(self, place: int, flip: int) -> None:
        changed = bytearray(GOLDEN)
        changed[place] ^= flip
        try:
            arrays = unpack(bytes(changed))
        except FormatError:
            return
        assert pack(arrays) == bytes(changed)

    def test_a_header_longer_than_the_data_is_refused(self) -> None:
        with pytest.raises(FormatError, match=r"a header of \d+ bytes in 10 bytes"):
            unpack(struct.pack("<Q", 2**63) + b"{}")

    def test_a_header_over_1_mib_is_refused(self) -> None:
        with pytest.raises(FormatError, match="at most 1048576"):
            unpack(packed(" " * (2**20 + 8)))

    def test_a_duplicate_key_is_refused(self) -> None:
        entry = '"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
        with pytest.raises(FormatError, match="'w' comes twice"):
            unpack(packed(f"{{{METADATA},{entry},{entry}}}", b"\0"))

    @pytest.mark.parametrize(
        "entry",
        [
            '"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}',
            '"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":0}',
            '"w":{"shape":[1],"dtype":"U8","data_offsets":[0,1]}',
            '"w": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}',
            '"\\u0077":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}',
            '"w":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}',
            '"w":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}',
            '"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,-1]}',
            '"w":{"dtype":"U8","shape":[0,18446744073709551616],"data_offsets":[0,0]}',
            '"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}',
            '"w":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}',
            '"w":{"dtype":"U8","shape":[' + ",".join("1" * 33) + '],"data_offsets":[0,1]}',
            '"w":' + "[" * 100_000 + "]" * 100_000,
            '"\\x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}',
            '"w":{"dtype":"U8","shape":[9999999999999999999],"data_offsets":[0,1]}',
            '"' + '\\"' * 400_000,
            '"w":7',
        ],
    )
    def test_a_header_that_pack_would_not_write_is_refused(self, entry: str) -> None:
        with pytest.raises(FormatError):
            unpack(packed(f"{{{METADATA},{entry}}}", b"\0"))

    @pytest.mark.parametrize("header", ["", "[]", "{}", '{"__metadata__":{"format":"pt"}}', "\x00"])
    def test_a_header_without_our_metadata_is_refused(self, header: str) -> None:
        with pytest.raises(FormatError):
            unpack(packed(header))

    def test_more_filling_than_needed_is_refused(self) -> None:
        with pytest.raises(FormatError, match="multiple of 8"):
            unpack(packed(f"{{{METADATA}}}" + " " * 8))

    def test_a_bool_that_is_neither_0_nor_1_is_refused(self) -> None:
        with pytest.raises(FormatError, match="'mask' holds a bool"):
            unpack(GOLDEN[:-1] + b"\x02")


class TestFormat:
    def test_json_is_the_header_and_comes_back(self) -> None:
        found = Format.of(MODEL)
        assert found.to_json().encode() == GOLDEN[8 : 8 + 312].rstrip()
        assert Format.from_json(found.to_json()) == found

    def test_json_written_otherwise_is_refused(self) -> None:
        with pytest.raises(FormatError, match="not a canonical header"):
            Format.from_json(json.dumps(json.loads(Format.of(MODEL).to_json())))

    def test_the_same_arrays_pass(self) -> None:
        Format.of(MODEL).check(dict(reversed(list(MODEL.items()))))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"head.bias": np.zeros(3, np.float32)},
                r"'head.bias' is F32 \[3\]; expected F32 \[2\]",
            ),
            ({"head.bias": np.zeros(2)}, r"'head.bias' is F64 \[2\]; expected F32 \[2\]"),
            ({"head.bias": np.zeros(2, complex)}, "'head.bias' has dtype 'complex128'"),
            ({"extra": np.zeros(2)}, "'extra' is not among the model's arrays"),
        ],
    )
    def test_another_array_is_named(self, change: Arrays, message: str) -> None:
        with pytest.raises(FormatError, match=message):
            Format.of(MODEL).check({**MODEL, **change})

    def test_a_missing_array_is_named(self) -> None:
        with pytest.raises(FormatError, match=r"'head.bias' is missing: expected F32 \[2\]"):
            Format.of(MODEL).check({k: v for k, v in MODEL.items() if k != "head.bias"})

    def test_of_update_has_int64_for_integers_and_bools(self) -> None:
        assert Format.of(MODEL).of_update() == Format.of(difference(MODEL, MODEL))

    def test_a_negative_length_is_refused(self) -> None:
        with pytest.raises(FormatError, match="no length is negative"):
            ArraySpec("a", "F32", (-1,))

    def test_any_other_order_is_refused(self) -> None:
        with pytest.raises(FormatError, match="canonical order"):
            Format((ArraySpec("b", "F32", ()), ArraySpec("a", "F32", ())))

    def test_a_key_that_comes_twice_is_refused(self) -> None:
        with pytest.raises(FormatError, match="'a' comes twice"):
            Format((ArraySpec("a", "F64", ()), ArraySpec("a", "F32", ())))


class TestCheckFinite:
    def test_numbers_pass(self) -> None:
        check_finite(MODEL)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_others_are_refused_by_key(self, value: float) -> None:
        with pytest.raises(FormatError, match="'w' holds 1 of 2 values"):
            check_finite({**MODEL, "w": np.array([0, value])})


class TestCheckStaysFinite:
    @given(st.sampled_from(["f2", "f4", "f8"]), st.data())
    def test_is_check_finite_of_the_model_with_the_update(
        self, dtype: str, data: st.DataObject
    ) -> None:
        model, update = (one(data.draw(hnp.arrays(dtype, 3)), dtype) for _ in range(2))
        try:
            check_finite(apply(model, update))
        except FormatError as fault:
            with pytest.raises(FormatError, match=re.escape(str(fault))):
                check_stays_finite(model, update)
        else:
            check_stays_finite(model, update)

    def test_arrays_without_items_and_integers_pass(self) -> None:
        model: Arrays = {"w": np.zeros(0), "n": np.array([2**31 - 1, 0], "i4")}
        check_stays_finite(model, difference(model, model))

    def test_another_format_is_refused(self) -> None:
        with pytest.raises(FormatError, match="'w' is F64"):
            check_stays_finite(one(1, "f4"), one(1, "f8"))


class TestDifference:
    def test_is_trained_minus_received(self) -> None:
        assert same(difference(one([3.0, 1.0]), one([1.0, 2.0])), one([2.0, -1.0]))

    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
    def test_floats_keep_their_dtype(self, dtype: str) -> None:
        assert difference(one(1, dtype), one(0, dtype))["w"].dtype == dtype

    def test_unsigned_integers_do_not_wrap_around(self) -> None:
        assert difference(one(5, "u1"), one(7, "u1"))["w"] == -2
        assert difference(one(0, "u8"), one(2**63, "u8"))["w"] == -(2**63)

    def test_bools_go_up_and_down(self) -> None:
        delta = difference(one([True, False], "?"), one([False, True], "?"))
        assert delta["w"].tolist() == [1, -1]

    def test_more_than_int64_holds_is_refused(self) -> None:
        with pytest.raises(FormatError, match="'w' changed by more than int64 holds"):
            difference(one(2**63 - 1, "i8"), one(-1, "i8"))

    def test_another_format_is_refused(self) -> None:
        with pytest.raises(FormatError, match="'w' is F64"):
            difference(one(1, "f8"), one(1, "f4"))

    def test_a_float_too_large_is_infinite(self) -> None:
        assert np.isinf(difference(one(3e38), one(-3e38))["w"])


class TestApply:
    @given(some_array, st.data())
    def test_undoes_an_integer_difference_exactly(
        self, base: NDArray[Any], data: st.DataObject
    ) -> None:
        if base.dtype.kind == "f":
            base = base.view(f"i{base.dtype.itemsize}")
        trained = data.draw(hnp.arrays(base.dtype, base.shape))
        try:
            update = difference({"w": trained}, {"w": base})
        except FormatError:
            return
        assert same(apply({"w": base}, update), {"w": trained})

    @given(st.sampled_from(["f2", "f4", "f8"]), st.data())
    def test_rounds_a_float_as_float64_does(self, dtype: str, data: st.DataObject) -> None:
        base, step = (data.draw(hnp.arrays(dtype, 8)) for _ in range(2))
        with np.errstate(all="ignore"):
            expected = (base.astype("f8") + step.astype("f8")).astype(dtype)
        found = apply(one(base, dtype), one(step, dtype))["w"]
        assert np.array_equal(found, expected, equal_nan=True)

    @given(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
    def test_undoes_a_float_difference_up_to_rounding(self, a: float, b: float) -> None:
        back = apply(one(b), difference(one(a), one(b)))["w"]
        assert abs(float(back) - a) <= 2**-23 * (abs(a) + abs(b))

    def test_scales_the_update(self) -> None:
        assert same(apply(one([1.0, 2.0]), one([4.0, -4.0]), 0.5), one([3.0, 0.0]))

    def test_rounds_an_integer_step_to_even(self) -> None:
        moved = apply(one([10, 10], "i4"), one([5, 7], "i8"), 0.5)
        assert same(moved, one([12, 14], "i4"))

    def test_keeps_the_keys_in_the_model_s_order(self) -> None:
        assert list(apply(MODEL, difference(MODEL, MODEL))) == list(MODEL)


class TestMean:
    def test_is_the_equation_of_section_2_b(self) -> None:
        found = mean(one([1.0, 1.0]), [one([1.0, 0.0]), one([3.0, 2.0])], eta=0.5)
        assert same(found, one([2.0, 1.5]))

    def test_is_computed_in_float64(self) -> None:
        steps = [one(2.0**24), one(1.0), one(-(2.0**24))]
        assert mean(one(0.0), steps, eta=3.0)["w"] == 1.0

    def test_the_order_given_is_the_order_summed(self) -> None:
        steps = [one(1e16, "f8"), one(1.0, "f8"), one(-1e16, "f8")]
        assert mean(one(0.0, "f8"), steps, 3.0)["w"] == 0.0
        assert mean(one(0.0, "f8"), [steps[0], steps[2], steps[1]], 3.0)["w"] == 1.0

    def test_large_arrays_are_averaged_as_small_ones(self) -> None:
        draws = np.random.default_rng(3).normal(size=(4, 3, 50_000)).astype(np.float32)
        found = mean({"w": draws[0]}, [{"w": row} for row in draws[1:]], eta=0.3)["w"]
        base, *steps = draws.astype(np.float64)
        expected = base + 0.3 * ((0 + steps[0] + steps[1] + steps[2]) / 3)
        assert np.array_equal(found, expected.astype(np.float32))

    def test_the_bytes_are_these(self) -> None:
        rng = np.random.Generator(np.random.PCG64(7))
        draws = rng.integers(-(2**20), 2**20, (4, 100)).astype(np.float32) / np.float32(3e5)
        found = mean({"w": draws[0]}, [{"w": row} for row in draws[1:]], eta=0.1)
        assert (
            digest(pack(found)).hex()
            == "88ec4b630645eac60b1ded2b7ad6a114b65a1bd337c212ecc5f947e90feed05a"
        )

    def test_only_the_step_of_integers_is_rounded(self) -> None:
        large = one(2**63 - 1, "i8")
        assert same(mean(large, [one(0, "i8")], 1.0), large)
        assert mean(one(0, "i8"), [one(1, "i8"), one(2, "i8")], 1.0)["w"] == 2

    @pytest.mark.parametrize("step", [2**63 - 1, -(2**63)])
    @pytest.mark.parametrize("dtype", [d for d in DTYPES if not d.startswith("f")])
    def test_integers_stay_at_the_end_of_their_range(self, dtype: str, step: int) -> None:
        moved = mean(one(1, dtype), [one(step, "i8")], 1e9)["w"]
        low, high = (0, 1) if dtype == "?" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        assert int(moved) == (high if step > 0 else low)

    def test_keeps_shapes_and_dtypes(self) -> None:
        found = mean(MODEL, [difference(MODEL, MODEL)] * 2, 1.0)
        assert same(found, MODEL)

    def test_an_update_of_another_format_is_refused(self) -> None:
        with pytest.raises(FormatError, match="'w' is F64"):
            mean(one(1.0), [one(1.0), one(1.0, "f8")], 1.0)

    def test_no_updates_have_no_mean(self) -> None:
        with pytest.raises(ValueError, match="keep the model as it is"):
            mean(one(1.0), [], 1.0)


class TestWeightedMean:
    @given(st.sampled_from(["f2", "f4", "f8"]), st.data())
    def test_is_computed_in_float64_and_rounded_once(self, dtype: str, data: st.DataObject) -> None:
        arrays = [data.draw(hnp.arrays(dtype, 4)) for _ in range(3)]
        weights = data.draw(st.tuples(*[st.integers(0, 65535)] * 3).filter(any))
        with np.errstate(all="ignore"):
            total = sum((w * a.astype("f8") for w, a in zip(weights, arrays, strict=True)), 0.0)
            expected = (total / sum(weights)).astype(dtype)
        found = weighted_mean([one(array, dtype) for array in arrays], weights)["w"]
        assert found.dtype == dtype
        assert np.array_equal(found, expected, equal_nan=True)

    def test_weighs(self) -> None:
        assert same(weighted_mean([one([1.0]), one([4.0])], [2, 1]), one([2.0]))

    def test_what_weighs_nothing_still_has_to_have_the_format(self) -> None:
        with pytest.raises(FormatError, match="'w' is F64"):
            weighted_mean([one(1, "f4"), one(1, "f8")], [1, 0])

    def test_rounds_integers_to_even(self) -> None:
        models = [one([1, 2, 250], "u1"), one([2, 3, 255], "u1")]
        assert weighted_mean(models, [1, 1])["w"].tolist() == [2, 2, 252]

    @pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1]])
    def test_weights_must_weigh(self, weights: list[int]) -> None:
        with pytest.raises(ValueError, match="not all may be zero"):
            weighted_mean([one(1), one(2)], weights)
