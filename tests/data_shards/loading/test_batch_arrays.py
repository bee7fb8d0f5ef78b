import numpy as np

from data_shards.loading.batch_arrays import BatchArrays, BatchShape


def test_arrays_of_a_slot_lie_apart_and_only_where_the_batch_has_them() -> None:
    shape = BatchShape(
        rows=3, height=5, width=7, objects=2, augmented=True, joints=4, in_3d=True, whole_images=True, clipped=True
    )
    memory = np.zeros(shape.num_bytes, dtype=np.uint8)
    slot = BatchArrays.over(memory, shape)
    for number, array in enumerate(vars(slot).values()):
        array[:] = number + 1 if array.dtype != np.bool_ else True
    for number, array in enumerate(vars(slot).values()):
        assert (array == (number + 1 if array.dtype != np.bool_ else True)).all()
    assert BatchArrays.over(memory, shape).labels.base is memory
    plain = BatchArrays.over(memory, BatchShape(rows=3, height=5, width=7, objects=2, augmented=False))
    assert plain.flips is None
    # 3 x 3 x 5 x 7 bytes of pixels, then boxes at the next multiple of 64.
    assert plain.boxes.ctypes.data - memory.ctypes.data == 320


def test_beginning_a_batch_leaves_no_object_of_the_last_one() -> None:
    shape = BatchShape(rows=2, height=4, width=4, objects=3, augmented=False)
    slot = BatchArrays.over(np.full(shape.num_bytes, 77, dtype=np.uint8), shape)
    slot.begin(np.array([8, 9]))
    assert (slot.labels == -1).all()
    assert (slot.boxes == 0).all()
    assert slot.sample_ids.tolist() == [8, 9]
