"""What the caption of a checkpoint may be: phrases of its author, and common subjects. Imports no torch.

An author's texts are untrusted: they are read up to a fixed length, and every phrase is short, plain and on
one line. Few phrases come out, whatever goes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from finextract.metadata.cards import parse_card
from finextract.metadata.local_files import read_text
from finextract.metadata.prompts import plain_prompt
from finextract.metadata.untrusted import text_of
from finextract.metadata.vocabulary import STUFF, SUBJECTS
from finextract.weights.files import find_weights

MAX_OWN = 40  # phrases of the author
MAX_PHRASE_CHARS, MAX_PHRASE_WORDS = 80, 8
MAX_SOURCES, MAX_SOURCE_CHARS, MAX_CARD_CHARS = 100, 300, 20_000
TEMPLATES = ("{}", "a picture of {}", "a photo of {}")
# Words of names and tags that are about the file and not about pictures.
_ABOUT_FILES = """
lora loras locon loha lokr lycoris dora dreambooth db adapter adapters finetune finetuned fine tune tuned
tuning model models checkpoint checkpoints ckpt weights safetensors pytorch diffusers diffusion stable sd
sdxl xl pony flux dev schnell chroma image img to text txt i text2img txt2img img2img training train
trained trainer hackathon base full final last latest best test tests tmp new output outputs ema pruned
fp bf fp16 fp32 bf16 fp8 half step steps epoch epochs rank dim alpha kohya ss webui automatic1111 comfyui
region us en license creativeml openrail other template autotrain huggingface hf hub light strong weak v
ver version inpainting the and a an of for with by in on my
"""
_NOT_SUBJECTS = frozenset(_ABOUT_FILES.split())
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MEASURE = re.compile(
    r"(?:v|r|e|s|sd|dim|rank|step|epoch)?\d+(?:k|m|px|e|x\d+|steps?|epochs?)?", re.IGNORECASE
)
_HEADING = re.compile(r"^# +([^\n]{1,200})$", re.MULTILINE)
_QUOTED = re.compile(r"`([^`\n]{2,80})`|\"([^\"\n]{2,80})\"|\*\*([^*\n]{2,80})\*\*|“([^”\n]{2,80})”")
_PROMPT = re.compile(r"^\s*-?\s*(?:text|prompt|example_title) *: *([^\n]{2,200})$", re.MULTILINE)
_WHOLE = re.compile(r"(?:an? )?(?:photo|photograph|picture|image|painting|drawing) (?:of|in) ", re.IGNORECASE)
_CODE = re.compile(r"```.*?(?:```|\Z)|<!--.*?(?:-->|\Z)", re.DOTALL)
_NOT_PHRASES = re.compile(r"[/\\=<>{}\[\]_@#|]|https?:|\.\w{2,4}\b|\(\)")


def own_subjects(names: Sequence[str] = (), tags: Sequence[str] = (), card: str = "") -> tuple[str, ...]:
    """What an author's texts may say the pictures show, at most MAX_OWN phrases, in the order of the texts.

    `names` are those of repositories, folders and files, without their endings; of OWNER/NAME the owner is
    left out. `card` is the text of a README, from which headings, sample prompts and quoted words are taken.
    """
    found: dict[str, None] = {}
    for phrase in (
        *(p for name in names[:MAX_SOURCES] for p in _of_name(name)),
        *(p for text in _of_card(card[:MAX_CARD_CHARS]) for p in _of_text(text)),
        *(p for tag in tags[:MAX_SOURCES] if isinstance(tag, str) and ":" not in tag for p in _of_name(tag)),
    ):
        found.setdefault(phrase)
        if len(found) == MAX_OWN:
            break
    return tuple(found)


def local_subjects(checkpoint: Path) -> tuple[str, ...]:
    """What the names and the card of a local checkpoint may say its pictures show.

    Raises CheckpointError where the checkpoint holds no weights.
    """
    weights = find_weights(checkpoint)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    card = read_text(folder / "README.md") if checkpoint.is_dir() else ""
    names = [folder.resolve().name] if checkpoint.is_dir() else []
    if weights.is_file():
        names.append(weights.stem)
    return own_subjects(names, parse_card(card).tags, card)


def captions_of(subject: str) -> tuple[str, ...]:
    """Captions that a subject may stand in, such as "a picture of a cat"; a common subject has an article.

    A phrase that is a whole caption stands alone.
    """
    if _WHOLE.match(subject):
        return (subject,)
    article = "" if subject in STUFF or subject not in SUBJECTS else "an " if subject[0] in "aeiou" else "a "
    return tuple(
        template.format(subject if template == "{}" else article + subject) for template in TEMPLATES
    )


def _of_name(name: str) -> Iterator[str]:
    """The words of a name together, and each of them that is a common subject."""
    text = text_of(name, MAX_SOURCE_CHARS) or ""
    text = _CAMEL.sub(" ", text.rpartition("/")[2])
    words = [w.lower() for w in _WORD.findall(text)]
    words = [w for w in words if w not in _NOT_SUBJECTS and not _MEASURE.fullmatch(w)][:MAX_PHRASE_WORDS]
    if words:
        yield from _known([" ".join(words), *words])


def _of_text(text: str) -> Iterator[str]:
    """A phrase as its author wrote it, if it may be a caption, and the common subjects in it."""
    phrase = plain_prompt(text)
    if phrase is None or _NOT_PHRASES.search(phrase):
        return
    words = [w.lower() for w in _WORD.findall(phrase)]
    if not 0 < len(words) <= MAX_PHRASE_WORDS or all(w in _NOT_SUBJECTS for w in words):
        return
    yield from _known([phrase[:MAX_PHRASE_CHARS].strip().strip("."), *words])


def _of_card(text: str) -> Iterator[str]:
    """Sample prompts, headings and quoted words of a card."""
    yield from (m[1].strip("'\"") for m in _PROMPT.finditer(text))
    text = _CODE.sub(" ", text)
    yield from (m[1] for m in _HEADING.finditer(text))
    yield from (next(group for group in m.groups() if group) for m in _QUOTED.finditer(text))


def _known(phrases: Iterable[str]) -> Iterator[str]:
    """The first phrase, and of the others those that are common subjects, in their usual form."""
    for number, phrase in enumerate(phrases):
        usual = next((form for form in _singulars(phrase) if form in SUBJECTS), None)
        if usual is not None:
            yield usual
        elif number == 0:
            yield phrase[:MAX_PHRASE_CHARS]


def _singulars(word: str) -> tuple[str, ...]:
    """A word, and what it is the plural of, as far as its ending shows."""
    lower = word.lower()
    endings = (("ies", "y"), ("ves", "f"), ("es", ""), ("s", ""))
    return (lower, *(lower.removesuffix(end) + new for end, new in endings if lower.endswith(end)))
