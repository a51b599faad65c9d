"""Parser of prompts: text in, a specification of the scene out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from stepvar.scenes.spec import MAXIMUM_OBJECTS, Group, SceneSpec
from stepvar.scenes.vocabulary import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    COUNT_WORDS,
    PICTURE_WORDS,
    PLURAL_WORDS,
    RELATION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    VOCABULARY,
    spellings,
    split_words,
)

_ADJECTIVES = (("size", SIZE_WORDS), ("texture", TEXTURE_WORDS), ("colour", COLOUR_WORDS))


class PromptError(ValueError):
    """A prompt that the grammar does not understand; the message says why in one sentence."""


class UnknownWordError(PromptError):
    """A prompt contains a word that is not in the vocabulary.

    Attributes:
        word: the unknown word, lower case.
        suggestions: the closest known words, closest first; may be empty.
    """

    def __init__(self, word: str, vocabulary: Collection[str] = VOCABULARY) -> None:
        self.word = word
        self.suggestions: tuple[str, ...] = tuple(get_close_matches(word, vocabulary, n=3, cutoff=0.5))
        if self.suggestions:
            hint = "the closest known words are " + _listing(list(self.suggestions), "and")
        else:
            hint = "known shapes are " + _listing(list(SHAPE_WORDS), "and")
        super().__init__(f"The word '{word}' is not known; {hint}.")


class WordOrderError(PromptError):
    """All words of a prompt are known, but they do not form a prompt."""


def parse(text: str) -> SceneSpec:
    """Read a prompt such as "a photo of two yellow stars above a striped blue ring on sand".

    Upper case, commas and full stops do not matter.

    Raises:
        UnknownWordError: a word is not in `VOCABULARY`.
        WordOrderError: the words are known, but their order is not understood, or too many objects are asked
            for.
    """
    reader = Reader(known_words(text, VOCABULARY, "a red star on sand"))
    reader.skip_lead_in(PICTURE_WORDS)
    groups = [reader.group()]
    relation = reader.relation()
    if relation is not None or reader.accept("and"):
        groups.append(reader.group())
    background = reader.background()
    reader.end("'and', a relation such as 'left of', a background such as 'on sand'")
    total = sum(group.count for group in groups)
    if total > MAXIMUM_OBJECTS:
        raise WordOrderError(
            f"A picture shows at most {MAXIMUM_OBJECTS} objects, the prompt asks for {total}."
        )
    return SceneSpec(tuple(groups), relation, background)


def known_words(text: str, vocabulary: Collection[str], example: str) -> list[str]:
    """The words of a prompt, lower case.

    Args:
        text: The prompt.
        vocabulary: Words that may be in it.
        example: Quoted in the error for an empty prompt.

    Raises:
        UnknownWordError: A word is not in the vocabulary.
        WordOrderError: There are none.
    """
    words = split_words(text)
    if not words:
        raise WordOrderError(f"The prompt is empty; ask for something like '{example}'.")
    for word in words:
        if word not in vocabulary:
            raise UnknownWordError(word, vocabulary)
    return words


def _listing(words: list[str], conjunction: str) -> str:
    quoted = [f"'{word}'" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {conjunction} {quoted[-1]}"


class Reader:
    """A position in a list of words, with one method per part of the grammar."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._position = 0

    def _peek(self) -> str | None:
        return self._words[self._position] if self._position < len(self._words) else None

    def accept(self, *phrase: str) -> bool:
        """Step over a phrase if it comes next."""
        stop = self._position + len(phrase)
        if tuple(self._words[self._position : stop]) != phrase:
            return False
        self._position = stop
        return True

    def fail(self, expected: str) -> WordOrderError:
        """Describe what was expected at this place and what stands there."""
        word = self._peek()
        after = f"after '{self._words[self._position - 1]}'" if self._position else "at the beginning"
        found = f"'{word}' stands there" if word is not None else "the prompt ends"
        return WordOrderError(f"Expected {expected} {after}, but {found}.")

    def skip_lead_in(self, nouns: Iterable[str]) -> None:
        """Step over "a photo of" and the like, with or without an article."""
        for noun in nouns:
            for article in ((), ("a",), ("an",), ("the",)):
                if self.accept(*article, noun, "of"):
                    return

    def group(self) -> Group:
        """Read a count, adjectives in any order and a shape."""
        count_word = self._peek()
        count = COUNT_WORDS.get(count_word or "")
        if count is not None:
            self._position += 1
        attributes: dict[str, str] = {}
        while self._adjective(attributes):
            pass
        word = self._peek() or ""
        if word in SHAPE_WORDS:
            if count is not None and count > 1:
                plural = spellings(PLURAL_WORDS, word)[0]
                raise WordOrderError(
                    f"After '{count_word}' the plural '{plural}' is needed instead of '{word}'."
                )
            shape, count = word, 1
        elif word in PLURAL_WORDS:
            if count is None or count < 2:
                raise WordOrderError(f"The plural '{word}' needs a count: 'two', 'three' or 'four'.")
            shape = PLURAL_WORDS[word]
        else:
            raise self.fail("a shape such as 'star' or 'ring'" if attributes or count else "an object")
        self._position += 1
        return Group(count, shape, **attributes)

    def _adjective(self, attributes: dict[str, str]) -> bool:
        """Read one adjective into `attributes`; False if none comes next."""
        word = self._peek() or ""
        for kind, table in _ADJECTIVES:
            if word in table:
                if kind in attributes:
                    raise WordOrderError(f"The word '{word}' gives one object a second {kind}.")
                attributes[kind] = table[word]
                self._position += 1
                return True
        return False

    def relation(self) -> str | None:
        """Read a relation such as "to the left of"; None if none comes next."""
        return self.phrase(RELATION_PHRASES)

    def phrase(self, table: Mapping[tuple[str, ...], str]) -> str | None:
        """Read one of several phrases and return its meaning; None if none comes next."""
        for words, meaning in table.items():
            if self.accept(*words):
                return meaning
        return None

    def background(self) -> str | None:
        """Read "on sand", "on the sand"; None if the prompt does not go on with "on"."""
        if not self.accept("on"):
            return None
        self.accept("the")
        word = self._peek() or ""
        if word not in BACKGROUND_WORDS:
            raise self.fail(f"a background, {_listing(list(BACKGROUND_WORDS), 'or')},")
        self._position += 1
        return BACKGROUND_WORDS[word]

    def end(self, expected: str) -> None:
        """Make sure that no word is left; `expected` names what could have come next."""
        if self._peek() is not None:
            raise self.fail(f"{expected} or the end")
