"""People's prose from a standard library: in a fixed order, without what cannot be read."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from random import Random

from gossamer.chat.curriculum import Curriculum, tokenizer_corpus
from gossamer.chat.prose import read_prose
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.track import SHORT

LONG = "A text that says something at length, and then says it once more. " * 4


def test_this_python_brings_prose(tmp_path: Path) -> None:
    """A dozen of its modules; all of them would take six seconds."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py"))[:12]:
        shutil.copy(path, tmp_path / path.name)
    if (library / "pydoc_data").is_dir():
        shutil.copytree(library / "pydoc_data", tmp_path / "pydoc_data")
    prose = read_prose(tmp_path)
    assert prose.files + len(prose.skipped) >= 13
    assert len(set(prose.documents)) == len(prose.documents) > 20
    assert prose.size == sum(map(len, prose.documents)) > 50_000
    assert all(document.strip() for document in prose.documents)


def test_order_is_that_of_the_names_and_copies_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'b': 'Second.', 'a': 'First.'}")
    (tmp_path / "z.py").write_text(f'"""{LONG}"""\ndef f():\n    "Too short."\n')
    (tmp_path / "m.py").write_text(f'class C:\n    """C. {LONG}"""\n    def g(self):\n'
                                   f'        """{LONG}"""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text(f'"""Not read. {LONG}"""')
    prose = read_prose(tmp_path)
    assert prose.documents == ("First.", "Second.", f"C. {LONG}".strip(), LONG.strip())
    assert (prose.files, prose.skipped) == (3, ())


def test_what_cannot_be_read_is_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def (")
    (tmp_path / "b.py").write_bytes(b'"""\xff\xfe"""')
    (tmp_path / "c.py").write_text(f'"""{LONG}"""')
    prose = read_prose(tmp_path)
    assert prose.documents == (LONG.strip(),)
    assert [path for path, _ in prose.skipped] == ["pydoc_data/topics.py", "a.py", "b.py"]
    assert all(why for _, why in prose.skipped)
    assert prose.text().startswith("1 document of 1 file, 0.00 MB of text; 3 files could not be")
    assert "pydoc_data/topics.py (No such file or directory), a.py (SyntaxError)" in prose.text()
    (tmp_path / "d.py").write_text("def (")
    (tmp_path / "e.py").write_text("def (")
    read_prose.cache_clear()
    assert read_prose(tmp_path).text().endswith("b.py (UnicodeDecodeError), and 2 more")


def test_long_chapters_are_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"{i}. {LONG}".strip() for i in range(60)]
    (tmp_path / "a.py").write_text('"""' + "\n\n".join(paragraphs) + '"""')
    documents = read_prose(tmp_path).documents
    assert len(documents) > 3 and all(len(d) <= 4096 for d in documents)
    assert "\n\n".join(documents).split("\n\n") == paragraphs


def test_the_curriculum_reads_prose_only_where_it_is_asked_to() -> None:
    tokenizer = Tokenizer.train(tokenizer_corpus(SHORT.tasks, prose=(LONG,))[-3000:], 320)
    for prose in ((), (LONG,)):
        plan = Curriculum(SHORT.tasks, tokenizer, {}, prose=prose)
        rng, read, answer = Random(3), plan.maker("read"), plan.maker("answer")
        seen = sum(LONG in tokenizer.decode(read(rng)[0]) for _ in range(300))
        assert (seen > 40) == bool(prose)
        assert not any(LONG in tokenizer.decode(answer(rng)[0]) for _ in range(100))
