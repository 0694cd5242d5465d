"""The text part of checkpoints that see as well, by either way of writing their names."""

from runtime.model.text_part import text_fields, text_tensors

TEXT = {"model.embed_tokens.weight": 1, "model.layers.0.x.weight": 2, "lm_head.weight": 3}


def test_tensors_of_the_text_part_have_the_names_of_a_text_model():
    before = {"vision_tower.layers.0.x.weight": 4, "multi_modal_projector.weight": 5}
    old = {f"language_model.{name}": tensor for name, tensor in TEXT.items()}
    new = {
        name.replace("model.", "model.language_model.", 1): tensor for name, tensor in TEXT.items()
    }
    assert text_tensors(before | old) == TEXT
    assert text_tensors({f"model.{name}": 6 for name in before} | new) == TEXT
    assert text_tensors(TEXT) == TEXT


def test_fields_of_the_text_part_and_what_is_said_of_the_whole():
    text = {"model_type": "gemma3_text", "hidden_size": 64, "bos_token_id": 3}
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 32}}
    told = {"tie_word_embeddings": True, "eos_token_id": [1, 106], "bos_token_id": 2}
    assert text_fields(whole | told) == {**told, **text}
    for alone in (text, whole | {"model_type": "paligemma"}, {"model_type": "gemma3"}):
        assert text_fields(alone) == alone
