"""README and docs/: their sizes, their links, and every name of the code that they mention."""

import ast
import csv
import importlib.util
import json
import os
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unlearn_utils import __main__, profiles
from unlearn_utils.cache import paths
from unlearn_utils.core import distances, methods, replicates, tables
from unlearn_utils.data.curation import passages
from unlearn_utils.findings import claims, comparison, robustness
from unlearn_utils.study import elsewhere, method_paths, parts, pool, selection

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "unlearn_utils"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def read(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return path.name


def without_blocks(text):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def code_of(page):
    """What stands between back-ticks in a page's text."""
    spans = re.findall(r"`([^`]+)`", without_blocks(read(page)))
    return [" ".join(span.split()) for span in spans]


def links_of(page):
    """What a page's links and pictures lead to in this repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(read(page)))
    return [target.partition("#")[0] for target in targets if "://" not in target]


# ------------------------------------------------------------------------------- size and links


def test_the_readme_has_at_most_10_000_bytes():
    assert README.stat().st_size <= 10_000


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_a_page_is_short(page):
    assert page.stat().st_size < 6_000 or page.name == "glossary.md"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_of_text_are_at_most_100_characters_long(page):
    lines = [line for line in read(page).splitlines() if not line.startswith(("|", "!["))]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(page):
    found = links_of(page)
    assert found or page.name == "glossary.md"
    for target in found:
        assert (page.parent / target).is_file(), target


def test_every_page_stands_in_the_index_and_in_the_site_s_navigation():
    tree = ast.parse(read(DOCS / "conf.py"))
    (below,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "BELOW"
    ]
    navigated = set()
    for entries in below.values():
        navigated |= {re.sub(r".*</(.*)>|^/", r"\1", entry) for entry in entries}
    linked = {Path(target).stem for target in links_of(DOCS / "index.md")}
    for page in PAGES:
        if page.name != "index.md":
            assert page.relative_to(ROOT).with_suffix("").as_posix() in navigated
            assert page.stem in linked


# -------------------------------------------------------------------------------- the first screen


def test_the_first_screen_says_what_this_is_shows_it_and_has_the_commands():
    lines = read(README).splitlines()[:40]
    assert lines[0].startswith("# ")

    def place(start):
        (found,) = [number for number, line in enumerate(lines) if line.startswith(start)]
        return found

    figure, clone = place("!["), place("git clone")
    smoke, everything, tests = (
        place("./run_all.sh smoke"),
        place("./run_all.sh  "),
        place("./run_tests.sh"),
    )
    assert figure < clone < smoke < everything < tests < 30
    description, target = re.fullmatch(r"!\[(.+)\]\((.+)\)", lines[figure]).groups()
    assert len(description) > 100
    assert f"](../{target})" in read(NOTEBOOKS[0])  # the same as on the first page

    opening = " ".join(lines[1:figure]).replace("et al.", "et al")
    assert len(re.findall(r"\.(?: |$)", opening.strip())) == 2
    assert any("notebooks/00_start_here.ipynb" in line for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_unseen_and_general_text_have_one_name_in_prose(page):
    if page.name == "glossary.md":
        return  # it says which split is which text
    prose = re.sub(r"`[^`]*`", "", without_blocks(read(page)))
    prose = re.sub(r"\s+", " ", re.sub(r"\]\([^)]*\)", "]", prose))
    assert not re.findall(r"\bapproximate(?! retraining)", prose)
    assert not re.findall(r"\bevaluation (?:text|document|set|split)", prose)


# --------------------------------------------------------------------------- names of the code


def defined(tree):
    """The names that a module or a class defines."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def names_by_module():
    """What each module defines; two folders may each have a module of one name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        found.setdefault(path.stem, set()).update(defined(ast.parse(read(path))))
    return found


MODULES = names_by_module()
OURS = tuple(f"{path.name}/" for path in (*ROOT.iterdir(), *PACKAGE.iterdir()) if path.is_dir())
WRITTEN = (".venv/", "runs/", "docs/_build")  # not in git
ENDINGS = {"py", "csv", "json", "lock"}  # of files that lie anywhere, or that a command writes


def missing_names(page):
    """The paths and `module.name`s of a page that are not there."""
    missing = []
    for span in code_of(page):
        word = span.partition("(")[0]
        named = re.fullmatch(r"([a-z_]+)\.([A-Za-z_]+)", word)
        if named and named[2] not in ENDINGS:
            module, name = named.groups()
            if name not in MODULES.get(module, ()):
                missing.append(span)
        elif word.startswith(OURS) and not word.startswith(WRITTEN):
            pattern = re.sub(r"NN|[A-Z]+(?=/)", "*", word).rstrip("/")
            if not list(ROOT.glob(pattern)) and not list(PACKAGE.glob(pattern)):
                missing.append(span)
    return missing


def test_every_variable_of_the_code_is_on_the_page_that_lists_them():
    listed = re.findall(r"^\| `(UNLEARN_[A-Z]+)` \|", read(ROOT / "docs" / "running.md"), re.M)
    assert listed == list(paths.VARIABLES)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_name_of_the_code_is_there(page):
    assert not missing_names(page)


def test_a_name_that_is_not_there_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    there = (
        "`pool.target(profile)` `elsewhere.of_axis` `elsewhere.draw` `core/losses.py` `run.json`"
    )
    page.write_text(f"{there} `pool.no_such` `no_such.target` `core/no_such.py` `figures/x`\n")
    assert missing_names(page) == ["pool.no_such", "no_such.target", "core/no_such.py", "figures/x"]


def test_the_design_page_walks_through_every_part():
    walk = read(DOCS / "design.md").partition("## The way of one document")[2]
    named = {span.partition(".")[0] for span in re.findall(r"`(\w+\.\w+)`", walk)}
    parts = {"data", "study", "engine", "core", "findings", "cache"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.stem in named:
            found.add(path.relative_to(PACKAGE).parts[0])
    assert parts <= found


def test_the_design_page_walks_on_to_the_verdict():
    walk = read(DOCS / "design.md").partition("## The way of one document")[2]
    steps = re.findall(r"^(\d+)\. \*\*", walk, flags=re.MULTILINE)
    assert list(map(int, steps)) == list(range(1, len(steps) + 1))
    last = walk[walk.index("9. **") :]
    for module in ("draws", "distances", "replicated", "replicates", "claims"):
        assert f"`{module}." in last


def test_the_design_page_follows_a_document_of_the_manifest():
    page = " ".join(read(DOCS / "design.md").split())
    (followed,) = re.findall(r"Follow `([\w-]+)`", page)
    with paths.MANIFEST.open(encoding="utf-8") as file:
        (row,) = [row for row in csv.DictReader(file) if row["id"] == followed]
    first, last = row["lines"].split("-")
    assert f"`{row['file']}`, lines {first} to {last}" in page
    assert f"split `{row['split']}`, rank {row['rank']}" in page
    assert int(row["rank"]) % 2 == selection.REPORT  # of the half on which nothing is chosen
    four = [one for one in pool.members(profiles.LAPTOP, 0) if row["domain"] in one.seen]
    assert len(four) == 4 and "of which four read this document" in page
    assert f"{passages.SHORTEST} to {passages.LONGEST:,} characters" in page


def house():
    """The module that draws the picture of the design page."""
    spec = importlib.util.spec_from_file_location("house", DOCS / "house.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_house_is_up_to_date_and_shows_every_part():
    drawn = house()
    assert read(drawn.PICTURE) == drawn.picture()
    rooms = {room.name for room in drawn.ROOMS}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms | {"runner"} == folders | {"profiles.py"}
    for room in drawn.ROOMS:
        assert room.left + room.width < drawn.WIDTH and room.top + room.height < drawn.HEIGHT


def commands_of(page):
    """The commands of this package in the blocks of code of a page, without their comments."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "unlearn_utils" in words and "..." not in words:
                found.append(words[words.index("unlearn_utils") + 1 :])
    return found


def test_the_commands_of_the_pages_are_understood():
    found = []
    for page in PAGES:
        found += commands_of(page)
    assert len(found) > 5
    for words in found:
        assert __main__.parser().parse_args(words)


# ----------------------------------------------------------------------------- tables of the pages


def cells_of(page, columns):
    """The rows of the page's table with so many columns, heading and rule left out."""
    lines = [line for line in read(page).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == columns and not row[0].startswith("---")]


def test_the_table_of_notebooks_has_their_titles_and_minutes():
    shown = {}
    for link, _, minutes in cells_of(DOCS / "notebooks.md", 3):
        found = re.fullmatch(r"\[(.+)\]\(\.\./notebooks/(.+)\)", link)
        if found:
            shown[found[2]] = (found[1], minutes)
    assert list(shown) == [path.name for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        notebook = json.loads(read(path))
        title = "".join(notebook["cells"][0]["source"]).splitlines()[0]
        minutes = notebook["metadata"]["expected_minutes"]["laptop"]
        assert shown[path.name] == (title.strip("# ").replace(" · ", " "), f"{minutes:.1f}")


def test_the_table_of_profiles_and_of_variables_are_complete():
    named = {row[0].strip("`") for row in cells_of(DOCS / "running.md", 4)}
    assert named - {"profile"} == set(profiles.PROFILES)
    variables = {row[0].strip("`") for row in cells_of(DOCS / "running.md", 2)}
    assert variables - {"variable"} == set(paths.VARIABLES)


def test_the_page_of_published_models_has_their_names_and_recipes():
    table = {row[0]: row[1:] for row in cells_of(DOCS / "published_models.md", 3)}
    both = [profiles.GPU, profiles.PAPER]
    for place, profile in enumerate(both):
        assert profile.hub.name in table["model, at a pinned revision"][place]
        assert profile.corpus.source in table["documents"][place]
        recipe = table["recipe"][place]
        assert f"{profile.unlearning.learning_rate:.0e}".replace("e-0", "e-") in recipe
        assert str(profile.unlearning.batch) in recipe


# ------------------------------------------------------------- the measurement and its constants


def words_of(name):
    """A page of docs/ as one line: sentences are wrapped anywhere."""
    return " ".join(read(DOCS / name).split())


def test_the_measurement_page_has_the_numbers_of_the_code():
    page = words_of("measurement.md")
    levels = [f"{level:g}" for level in comparison.LEVELS]
    assert f"first reaches {levels[0]}, {levels[1]} or {levels[2]}" in page
    assert f"differ by at most {distances.NEAR:g} on every kind of text" in page
    assert f"the forget set has moved by {method_paths.MOVED:g} nats" in page
    times = {4: "four"}[method_paths.ENDED]
    assert f"past {times} times the target's distance" in page
    assert distances.HALF == 0.5 and "at least half of the method's own best score" in page
    assert replicates.LEVEL == 0.95 and "95% interval" in page and "19 times out of 20" in page


def test_the_measurement_page_has_the_smallest_differences_that_matter():
    page = words_of("measurement.md")
    smallest = {claim.threshold for claim in claims.CLAIMS if claim.half}
    assert smallest == set(robustness.SMALLEST.values()) == {0.01}
    assert "Both differences, in robustness and in the window, must be above 0.01" in page
    assert "A pilot had been seen" in page


def test_the_measurement_page_has_the_replicates():
    page = words_of("measurement.md")
    first, *_, last = profiles.STUDY.replicates
    assert profiles.LAPTOP.replicates == (0,)
    assert f"`laptop` runs replicate 0, and `study` replicates {first} to {last}." in page
    models = pool.members(profiles.LAPTOP, 0)
    assert f"$2^{len(profiles.LAPTOP.domains)} = {len(models)}$ models" in page


def test_what_was_dropped_is_no_claim_and_the_page_says_why():
    ids = {claim.id for claim in claims.CLAIMS}
    dropped = words_of("measurement.md").partition("## What was dropped")[2]
    for name in ("F2", "C2 widest"):
        assert name not in ids and name in dropped
    assert "KL divergence" in dropped and "C3" not in ids


def test_the_page_of_deviations_has_the_recipe_and_the_size():
    page = read(DOCS / "deviations.md")
    rate = f"{profiles.LAPTOP.unlearning.learning_rate:.0e}".replace("e-0", "e-")
    assert f"| AdamW at {rate}, constant, no warm-up |" in page
    assert f"{elsewhere.parameters(profiles.LAPTOP.shape):,} parameters" in page
    assert f"| {profiles.LAPTOP.shape.context} tokens |" in page


def test_the_parts_of_the_study_and_its_profile_are_named():
    page = words_of("running.md")
    assert "compute study --part NAME" in page and parts.MACHINE in page
    six = {6: "six"}[len(profiles.STUDY.replicates)]
    assert f"for {six} other replicates" in page


# -------------------------------------------------------------------------------------- glossary

TERMS = """
forget set, retain set, unseen, approximate, evaluation, general, target, retrained, pool, pair,
replicate, path, mark, gap, forget gap, damage, distance, score, robustness, window, plane, setting,
equal forgetting, rerun interval, interval, draw, report half, selection half, family, nat, loss,
log perplexity, perplexity, Min-K% Prob, AUC, AUC over retrained, PrivLeak, noise floor, KL, proxy,
bias of the proxy, do nothing, another retrained model, in-distribution, regret, guideline, bound,
verdict, supported, inconclusive, margin, opened, turned, claim, finding, threshold, accuracy,
artifact, bootstrap, chunk, defect, domain, embedded corpus, epoch, exposures, extraction strength,
exact value, trained value, FLOPs, glance, grid, jump, LoRA, manifest, member, membership inference,
memorised, method, MFU, micro-batch, n, not available, original model, over-unlearning, pass,
passage, profile, rank, reference, released code, retain term, ROC curve, ROUGE-L, seed, split,
step, store, stratum, unlearned, usual rate, utility, variant, zlib, band, best score
"""
STRESSED = {
    *("really", "and", "less", "text", "too low", "computed", "before", "after", "hours"),
    *("difference", "equally much", "first reaches"),
}
FORMS = {  # of a term, in a notebook
    "families": "family",
    "folds": "folded",
    "forget": "forget set",
    "nats": "nat",
    "nats a token": "nat",
    "pairs": "pair",
    "retrained model": "retrained",
    "retraining": "retrained",
    "targets": "target",
}


def glossary_terms():
    """The terms in the order of the glossary; an entry may have two."""
    entries = re.findall(r"^- (\*\*.+?):", read(DOCS / "glossary.md"), flags=re.MULTILINE)
    terms = []
    for entry in entries:
        terms += re.findall(r"\*\*(.+?)\*\*", entry)
    return terms


def test_the_glossary_has_the_terms():
    wanted = {term.strip() for term in " ".join(TERMS.split()).split(",")}
    assert not wanted - set(glossary_terms())


def test_the_glossary_has_what_tables_and_rules_are_called():
    text = read(DOCS / "glossary.md")
    names = [*tables.MEASURES, *comparison.OTHERS, *list(methods.METHODS)[:7]]
    names += ["robustness", "window", "best score", "worse than doing nothing"]  # in notebook 11
    names += [f"`{split}`" for split in distances.SPLITS]
    names += [f"`{profile}`" for profile in profiles.PROFILES]
    for name in names:
        assert name in text, name
    for verdict in (claims.SUPPORTED, claims.NOT_SUPPORTED, claims.OPEN, claims.UNKNOWN):
        assert f"**{verdict}**" in text


def test_the_glossary_has_the_numbers_of_the_code():
    text = words_of("glossary.md")
    levels = [f"{level:g}" for level in comparison.LEVELS]
    assert f"first reaches a level: {levels[0]}, {levels[1]} or {levels[2]}." in text
    assert f"differ by more than {distances.NEAR:g} nats" in text
    assert f"at least {distances.HALF:g} of its own *best score*" in text
    assert f"past {method_paths.ENDED} times the target's distance" in text
    assert f"where a *guideline* chooses: {robustness.BOUND:.0%}." in text


def test_the_glossary_has_every_word_that_a_notebook_sets_in_italics():
    text = read(DOCS / "glossary.md").lower()
    known = STRESSED | {claim.id.lower() for claim in claims.CLAIMS}
    for path in NOTEBOOKS:
        for cell in json.loads(read(path))["cells"]:
            if cell["cell_type"] != "markdown":
                continue
            words = re.findall(r"(?<![*\w])\*([A-Za-z][\w ()-]*)\*(?!\*)", "".join(cell["source"]))
            for word in words:
                term = FORMS.get(word.lower(), word.lower())
                assert term in known or f"*{term}*" in text, f"{path.name}: {word}"


def test_the_glossary_is_in_alphabetical_order():
    entries = re.findall(r"^- \*\*(.+?)\*\*", read(DOCS / "glossary.md"), flags=re.MULTILINE)
    assert len(entries) == len(set(entries)) > 100
    keys = [re.sub(r"[^a-z0-9 ]", "", entry.lower().replace("λ", "lambda")) for entry in entries]
    assert keys == sorted(keys)


# --------------------------------------------------------------------------------- troubleshooting


def texts_of_the_program():
    """Every text that the package and the scripts may print, its variable parts left out."""
    found = [read(path) for path in ROOT.glob("*.sh")]
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                fixed = [part.value for part in node.values if isinstance(part, ast.Constant)]
                found.append("".join(fixed))
    return "\n".join(found)


def test_every_message_of_the_troubleshooting_page_is_one_of_ours():
    quoted = re.findall(r"\*\*`(.+?)`\*\*", read(DOCS / "troubleshooting.md"))
    assert len(quoted) > 30
    ours = texts_of_the_program()
    of_sphinx, of_the_plan = {"WARNING:"}, {"this will not fit", "this may not fit"}
    for message in set(quoted) - of_sphinx - of_the_plan:
        assert message in ours, message
    assert 'verdict = "will not" if' in read(PACKAGE / "app" / "memory_plan.py")


# ------------------------------------------------------------------------------------- the build


def pins_of(lock):
    lines = [line for line in read(ROOT / lock).splitlines() if line and line[0] != "#"]
    pins = {}
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line)
        name, version = line.split("==")
        pins[canonicalize_name(name)] = version
    assert len(pins) == len(lines) and lines == sorted(lines, key=str.lower)
    return pins


def test_the_lock_of_the_documentation_is_exact_and_admitted_by_the_extra():
    pins = pins_of("requirements-docs.lock")
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    for line in project["optional-dependencies"]["docs"]:
        required = Requirement(line)
        assert required.specifier
        assert required.specifier.contains(pins[canonicalize_name(required.name)])


def test_no_package_of_the_documentation_is_part_of_the_environment_or_of_the_corpus():
    pins = set(pins_of("requirements-docs.lock"))
    environment = read(ROOT / "requirements.lock")
    locked = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", environment, re.M)}
    assert len(locked) > 100 and not pins & locked
    sources = passages.locked_distributions(paths.LOCK)
    assert not pins & {canonicalize_name(name) for name in sources}


def test_what_the_build_writes_is_not_committed():
    ignored = read(ROOT / ".gitignore").split()
    assert {"docs/_build/", "runs/"} <= set(ignored)
    script = read(ROOT / "build_docs.sh")
    assert os.access(ROOT / "build_docs.sh", os.X_OK) and " -W " in script
    written = re.findall(r"(?:packages|log|source)=(\S+)", script)
    assert len(written) == 3
    assert all(place.startswith(("runs/", "docs/_build/")) for place in written)


def test_the_committed_study_is_tracked_but_for_notebook_01():
    patterns = []
    for line in read(ROOT / ".gitignore").split():
        if line.startswith("figures"):
            patterns.append(line)

    def ignored(name):
        return any(fnmatch(f"figures/study/{name}", pattern) for pattern in patterns)

    tables_and_rows = ["table02_models.csv", "table11_claim.csv", f"{claims.TABLE}.csv"]
    tables_and_rows += [parts.MACHINE, "pool_rows.parquet", "paths_claim.parquet"]
    for name in [*tables_and_rows, "fig10_plane.png", "fig16_bias.pdf"]:
        assert not ignored(name), name
    for name in ("table01_counts.csv", "fig01_lengths.png", ".pool_rows.parquet.part"):
        assert ignored(name), name


def test_the_site_has_the_folder_of_every_image_that_is_shown():
    copied = re.search(r"^for folder in (.+); do$", read(ROOT / "build_docs.sh"), re.MULTILINE)[1]
    folders = {"docs", *copied.split()}
    pages = [ROOT / "README.md", *DOCS.glob("*.md"), *NOTEBOOKS]
    shown = set()
    for page in pages:
        for image in re.findall(r"!\[[^\]]*\]\(([^)]+\.(?:png|svg))\)", read(page)):
            shown.add((page.parent / image).resolve().relative_to(ROOT).parent.as_posix())
    assert {"docs", "figures/study", "figures/published"} <= shown <= folders
