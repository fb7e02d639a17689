"""New words for ComfyUI's text encoders: prompts in which a word is a tensor that can be trained.

ComfyUI's tokenizers replace `embedding:name` by the tensors of an embedding file. So a prompt is tokenized as it will be when the trained
file is used: with a file that only marks the places; then the trained tensors replace the marks.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.sd1_clip import SDTokenizer
from safetensors.torch import save_file

from ....guidance.errors import quoted
from ....training.textual_inversion import Concept, Vocabulary, Word, names, start_rows, with_name
from ..gradients import run_in_inference_mode
from ..prompts import encoded
from ..saved_tensors import map_tensors, mutations_allowed

MARK, MARKED_NAME = 7777.25, "controlled_diffusion_new_word"


@dataclass(frozen=True)
class Encoder:
    """One text encoder of a CLIP. `key` is its name in embedding files."""

    key: str
    tokenizer: SDTokenizer
    model: torch.nn.Module

    @property
    def table(self) -> torch.Tensor:
        """Its word vectors (words, dim)."""
        return self.model.transformer.get_input_embeddings().weight

    @property
    def sample(self) -> torch.Tensor:
        """A few thousand of them, spread over the whole vocabulary, float32."""
        return run_in_inference_mode(lambda table: table[:: max(1, len(table) // 4096)].float(), self.table)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without those that begin, end or fill a prompt."""
        frame = {self.tokenizer.start_token, self.tokenizer.end_token, self.tokenizer.pad_token}
        return [t for t in self.tokenizer.tokenizer(text)["input_ids"] if t not in frame]

    def rows(self, ids: list[int]) -> torch.Tensor:
        """Their vectors (n, dim), float32."""
        embed = self.model.transformer.get_input_embeddings()
        return run_in_inference_mode(
            lambda given: embed(given, out_dtype=torch.float32)[0].float(), torch.tensor([ids], device=embed.weight.device)
        )


def _parts(tokenizer) -> dict[str, SDTokenizer]:
    """The tokenizers of the encoders, by attribute."""
    return {name: part for name, part in vars(tokenizer).items() if isinstance(part, SDTokenizer)}


def encoders(clip) -> list[Encoder]:
    """The text encoders of a CLIP, which all have to read embedding files. Raises ValueError where one does not."""
    stage, found = clip.cond_stage_model, []
    for name, part in _parts(clip.tokenizer).items():
        reads, model = part.embedding_directory is not None, getattr(stage, name, None)
        if model is not None and reads:
            found.append(Encoder(part.embedding_key, part, model))
        elif (model is not None and not reads) or not hasattr(stage, name):
            raise _unread(clip, name)
    if not found:
        raise _unread(clip)
    return found


def _unread(clip, part: str = "") -> ValueError:
    what = f" for its text encoder {part}" if part else ""
    return ValueError(
        f"ComfyUI's {type(clip.tokenizer).__name__} reads no embedding files{what}, so a new word could not be used with this model. Train a "
        "LoRA without a new word instead, or use a model with CLIP or T5 text encoders."
    )


def is_word(clip, text: str) -> bool:
    """Whether a text is a single token, that is a word, of any encoder."""
    return any(len(e.ids(text)) == 1 for e in encoders(clip))


def initial_rows(encoder: Encoder, words: str) -> torch.Tensor:
    """Vectors (n, dim) of the initial words, or the mean of all words if none is given."""
    ids = encoder.ids(words) if words.strip() else []
    if ids:
        return encoder.rows(ids)
    if words.strip():
        raise ValueError(
            f"The initial words {quoted(words)} hold no word that {encoder.key} knows. Give plain words, such as 'cat' or 'small toy'."
        )
    return encoder.sample.mean(0, keepdim=True)


def _marks(found: list[Encoder], vectors: int, word: int) -> dict[str, torch.Tensor]:
    """For each encoder vectors that hold its index, the index of their word, and their own."""
    heads = [torch.tensor([[MARK, number, i, word] for i in range(vectors)]) for number in range(len(found))]
    return {e.key: torch.nn.functional.pad(head, (0, e.table.shape[1] - 4)) for e, head in zip(found, heads)}


def _reading(tokenizer, folder: str):
    """A copy of a tokenizer that also finds embedding files in a folder."""
    own = copy.copy(tokenizer)
    for name, part in _parts(tokenizer).items():
        known = part.embedding_directory
        if known is not None:
            reader = vars(own)[name] = copy.copy(part)
            reader.embedding_directory = [folder, *([known] if isinstance(known, str) else known)]
    return own


class NewWord:
    """Encodes prompts in which placeholders stand for the vectors of their concepts, so many of each.

    `clip` is never changed: prompts are tokenized by a copy of its tokenizer. Prompts are tokenized once.
    """

    def __init__(self, clip, concepts: dict[str, Concept], vectors: int):
        self.clip, self.concepts = clip, concepts
        self.encoders, self.tokenized = encoders(clip), {}
        self.marks = [_marks(self.encoders, vectors, word) for word in range(len(self.concepts))]

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained vectors of all words, by name."""
        concepts = enumerate(self.concepts.values())
        return {f"{number}.{k}" if number else k: p for number, concept in concepts for k, p in concept.parameters.items()}

    def control(self) -> None:
        """Brings every vector to the length it may have."""
        for concept in self.concepts.values():
            concept.control()

    def named(self, text: str) -> bool:
        """Whether a text holds any of the words."""
        return any(names(text, placeholder) for placeholder in self.concepts)

    def tokens(self, text: str) -> dict:
        """The tokens of a prompt, with a mark for each vector."""
        if text not in self.tokenized:
            own = self.clip.clone()
            with tempfile.TemporaryDirectory() as folder:
                own.tokenizer, marked = _reading(self.clip.tokenizer, folder), text
                for number, placeholder in enumerate(self.concepts):
                    save_file(self.marks[number], Path(folder) / f"{MARKED_NAME}_{number}.safetensors")
                    marked = with_name(marked, placeholder, f"embedding:{MARKED_NAME}_{number}")
                self.tokenized[text] = own.tokenize(marked)
        return self.tokenized[text]

    def trained_tokens(self, text: str) -> dict:
        """The tokens of a prompt with the vectors as they are, instead of their marks."""
        rows = [{e.key: c.rows(e.key) for e in self.encoders} for c in self.concepts.values()]

        def filled(token: torch.Tensor) -> torch.Tensor:
            marked = token.numel() > 3 and float(token[0]) == MARK
            return rows[int(token[3])][self.encoders[int(token[1])].key][int(token[2])] if marked else token

        return map_tensors(self.tokens(text), filled)

    def conditioning(self, text: str) -> list:
        """The CONDITIONING of a prompt, as ComfyUI encodes it."""
        return run_in_inference_mode(encoded, self.clip, text, self.trained_tokens(text))

    def encode(self, text: str) -> list:
        """One part of that, [features, extras], with a graph to the vectors where one is recorded.

        The encoders must be loaded: ComfyUI's own encoding loads them for each prompt, which could unload the denoiser. They change in place
        what autograd has saved.
        """
        stage, tokens = self.clip.cond_stage_model, self.trained_tokens(text)
        stage.reset_clip_options()
        if self.clip.layer_idx is not None:
            stage.set_clip_options({"layer": self.clip.layer_idx})
        stage.set_clip_options({"execution_device": self.clip.patcher.load_device})
        with mutations_allowed(lambda: [*stage.parameters(), *stage.buffers()]):
            features, pooled, *more = stage.encode_token_weights(tokens)
        extras = {"pooled_output": pooled, **(more[0] if more else {})}
        self.clip.add_hooks_to_dict(extras)
        return [features, extras]


def start(clip, words: Sequence[Word], seed: int, pace: float = 1.0) -> NewWord:
    """Words with their start values, trained jointly, for a CLIP that can be trained with. `pace`: how much faster than other parameters the
    optimizer moves them."""
    found, concepts = encoders(clip), {}
    vocabularies = {e.key: Vocabulary.from_table(e.sample) for e in found}
    generator = torch.Generator().manual_seed(seed % 2**63)
    for word in words:
        starts = {e.key: start_rows(initial_rows(e, word.initial_words).cpu(), word.vectors, generator) for e in found}
        concepts[word.placeholder] = Concept(starts, vocabularies, word.norm, word.norm_limit, pace)
    return NewWord(clip, concepts, words[0].vectors)
