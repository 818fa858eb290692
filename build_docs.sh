#!/usr/bin/env bash
# Builds the documentation as a site: the pages of docs/, the notebooks as they are committed, and
# the reference of unlearn_utils/core. A warning is an error. No notebook is executed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./environment.sh

# Sphinx lies apart from the environment, which stays as requirements.lock says.
packages=runs/docs/packages
log=runs/docs/install.log
wanted=$("$PYTHON" --version && cat requirements-docs.lock)
if [ "$(cat $packages/installed.lock 2>/dev/null)" != "$wanted" ]; then
    echo "Installing the packages of requirements-docs.lock into $packages (once) ..."
    rm -rf $packages
    mkdir -p $packages
    "$PYTHON" -m pip install --disable-pip-version-check --no-deps --target $packages \
        -r requirements-docs.lock >$log 2>&1 ||
        fail "the packages of requirements-docs.lock could not be installed (log: $root/$log)"
    echo "$wanted" >$packages/installed.lock # last: an interrupted installation is repeated
fi
export PYTHONPATH="$root/$packages:$PYTHONPATH"

# The source of the site: everything that is shown, in the same places as in the repository.
source=docs/_build/source
rm -rf docs/_build
mkdir -p $source/{docs,notebooks,api}
cp README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff LICENSE $source
cp docs/*.md docs/*.svg $source/docs
cp notebooks/*.ipynb $source/notebooks
for folder in figures figures/study figures/published; do
    mkdir -p $source/$folder
    cp $folder/*.png $source/$folder
done
for path in unlearn_utils/core/[a-z]*.py; do
    name=$(basename "$path" .py)
    cat >"$source/api/$name.md" <<PAGE
# core.$name

\`\`\`{eval-rst}
.. automodule:: unlearn_utils.core.$name
   :members:
\`\`\`
PAGE
done

"$PYTHON" -m sphinx --quiet -W --keep-going -c docs $source docs/_build/html
echo '<meta http-equiv="refresh" content="0; url=docs/index.html">' >docs/_build/html/index.html
echo "The site: docs/_build/html/index.html"
