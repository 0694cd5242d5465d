"""Random and hostile cases of every C++ op, sanitised, on every instruction set of this machine."""

import pytest

from tests.native.build import ISAS, NoSanitizer, build, run

CASES = 1_500


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    try:
        return build(tmp_path_factory.mktemp("native"))
    except NoSanitizer as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("isa", ISAS)
def test_random_and_hostile_cases(driver, isa):
    cases = run(driver, 1, CASES, isa)
    if "is not an instruction set of this processor" in cases.stderr:
        pytest.skip(f"this processor does not run {isa}")
    assert cases.returncode == 0, cases.stderr[-4000:]
    assert cases.stdout == f"{CASES} cases on {isa}\n"
