#!/usr/bin/env bash
# Executes the notebooks in order and regenerates every figure. See ./run_all.sh --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

help() {
    cat <<'TEXT'
usage: ./run_all.sh [PROFILE] [--only NN] [--from NN] [--fresh]

profiles
  smoke      a tiny model on a slice of the text; about 4 minutes; writes to runs/smoke/
  laptop     the default: what is committed in notebooks/ and figures/, one replicate; about
             30 minutes, up to 6 GB of memory
  study      what laptop does, for six other replicates, and notebooks 16 and 20; about 4 hours,
             or in parts: python -m unlearn_utils compute study --part NAME; writes to runs/study/
             and figures/study/, its progress to runs/study/progress.txt
  published  a published model of 135 million parameters, trained on with and without a forget set;
             notebooks 17 and 21; about 90 minutes, up to 13 GB of memory; downloads 0.1 to 0.3 GB
             once: python -m unlearn_utils fetch published; writes to runs/published/ and
             figures/published/
  gpu        Pythia-1.4b on one GPU; documents that it was and was not trained on; hours; writes to
             runs/gpu/
  hubble     Hubble-1B on one GPU; trained by its makers with and without inserted passages; hours;
             writes to runs/hubble/
  paper      Yi-6B and the paper's dataset on one GPU of 140 GB, or on several (see
             docs/several_gpus.md); writes to runs/paper/; with UNLEARN_BOOKS=FOLDER the domain
             books, too, from FOLDER/books/{forget,approximate,retain}
             gpu, hubble and paper need the hub once: python -m unlearn_utils fetch PROFILE

options
  --only NN  only notebook NN
  --from NN  notebook NN and those after it
  --fresh    ignore stored results and train again
  --help     this text

The first call makes .venv with the packages of requirements.lock, unless the active environment has
them.
TEXT
}

refuse() {
    echo "error: $1" >&2
    exit 2
}

notebook_numbers() {
    cd notebooks 2>/dev/null && printf '%s\n' [0-9][0-9]_*.ipynb | cut -c1-2 | paste -sd ' ' -
}

check_number() {
    [[ $2 =~ ^[0-9]{1,2}$ ]] || refuse "$1 needs the number of a notebook, such as 02"
    compgen -G "notebooks/$(printf %02d $((10#$2)))_*.ipynb" >/dev/null ||
        refuse "no notebook $2; there are: $(notebook_numbers)"
}

profile=laptop
options=()
[[ ${1:-} == -* ]] || { profile=${1:-laptop} && shift $(($# > 0)); }
while (($#)); do
    case $1 in
    --help | -h) help && exit 0 ;;
    --only | --from)
        check_number "$1" "${2:-}"
        options+=("$1" "$2")
        shift 2
        ;;
    --fresh) options+=("$1") && shift ;;
    *) refuse "unknown option $1; see ./run_all.sh --help" ;;
    esac
done
case $profile in
smoke | laptop | study | published | gpu | hubble | paper) ;;
*) refuse "unknown profile $profile; there are smoke, laptop, study, published, gpu, hubble, paper" ;;
esac

source ./environment.sh
exec "$PYTHON" -m unlearn_utils run "$profile" ${options[@]+"${options[@]}"} 3>&-
