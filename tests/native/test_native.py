"""Random, hostile and kept cases of every C++ op, sanitised, on every instruction set here."""

import pytest

from tests.native.__main__ import CORPUS
from tests.native.build import ARM, ISAS, NoSanitizer, build, build_for_arm, build_fuzzer, run, runs

# a driver with every op under sanitizers takes five minutes of a core to build
pytestmark = pytest.mark.timeout(900)
CASES = 1_500
KEPT = sorted(CORPUS.iterdir())


@pytest.fixture(scope="module")
def driver(of_all_workers):
    return built(build, of_all_workers)


@pytest.fixture(scope="module")
def fuzzer(of_all_workers):
    return built(build_fuzzer, of_all_workers)


@pytest.fixture(scope="module")
def arm(of_all_workers):
    return built(build_for_arm, of_all_workers)


def built(how, of_all_workers):
    try:
        with of_all_workers(how.__name__) as folder:
            made = folder / "driver"
            return made if made.exists() else how(folder)
    except NoSanitizer as reason:
        pytest.skip(str(reason))


def passes(driver, isa, *arguments):
    if not runs(driver, isa):
        pytest.skip(f"this processor does not run {isa}")
    cases = run(driver, isa, *arguments)
    assert cases.returncode == 0, cases.stderr[-4000:]
    return cases


@pytest.mark.parametrize("isa", ISAS)
def test_random_and_hostile_cases(driver, isa):
    assert passes(driver, isa, 1, CASES).stdout == f"{CASES} cases on {isa}\n"


@pytest.mark.parametrize("isa", ISAS)
def test_kept_cases(driver, isa):
    assert passes(driver, isa, "replay", *KEPT).stdout == f"{len(KEPT)} cases on {isa}\n"


@pytest.mark.parametrize("isa", ISAS)
def test_kept_cases_of_the_fuzzer(fuzzer, isa):
    assert passes(fuzzer, isa, *KEPT).stderr.count("Executed ") == len(KEPT)


@pytest.mark.parametrize("isa", ARM)
def test_random_and_hostile_cases_on_arm(arm, isa):
    """Emulated, with the undefined behaviour sanitiser alone."""
    assert passes(arm, isa, 1, CASES // 5).stdout == f"{CASES // 5} cases on {isa}\n"


def test_the_corpus_is_small():
    assert 10 <= len(KEPT) <= 40
    assert all(path.stat().st_size <= 512 for path in KEPT)
