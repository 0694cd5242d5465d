"""Random GGUF files: the ids of texts, the texts of ids and the stops are llama.cpp's."""

import pytest

from tests.model.tokenizer_cases import NAMES, case_of_name, compare, compare_case

# two of three are byte pairs, one of each name that there is
SEEDS = 150
TOGETHER = 10


@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
def test_random_files_are_read_as_llama_cpp_reads_them(first, llama_cpp_vocab):
    for seed in range(first, first + TOGETHER):
        compare(seed, llama_cpp_vocab)


@pytest.mark.parametrize("name", NAMES)
def test_text_is_cut_as_llama_cpp_cuts_it_under_each_name(name, llama_cpp_vocab):
    compare_case(case_of_name(name, seed=0), f"name {name}", llama_cpp_vocab)
