from data_shards.suggestions import did_you_mean


def test_a_close_name_is_suggested_and_others_are_listed() -> None:
    assert did_you_mean("preson", ["dog", "person"]) == "did you mean 'person'?"
    assert did_you_mean("lamp", ["dog", "person"]) == "known are dog, person."
    many = [f"class {number:02}" for number in range(80)]
    assert did_you_mean("lamp", many).endswith("class 10, class 11, … (80 in all).")
