# Sourced by the scripts beside it: arguments, --dry-run, confirmation.
# shellcheck shell=bash
DRY_RUN=${DRY_RUN:-0}
YES=${YES:-0}

fail() {
    echo "error: $*" >&2
    exit 2
}

# Takes --dry-run and --yes out of the arguments; the rest is in ARGS.
parse() {
    ARGS=()
    for word in "$@"; do
        case $word in
        --dry-run) DRY_RUN=1 ;;
        --yes) YES=1 ;;
        -h | --help) usage ;;
        *) ARGS+=("$word") ;;
        esac
    done
}

# The comment at the top of the script.
usage() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 0
}

# Runs a command, or with --dry-run prints it as it would be typed.
run() {
    if [ "$DRY_RUN" = 1 ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

# Asks before something is lost; --yes answers, a dry run asks nothing.
confirm() {
    if [ "$DRY_RUN" = 1 ] || [ "$YES" = 1 ]; then return 0; fi
    [ -t 0 ] || fail "$1: needs --yes where nobody can answer"
    read -r -p "$1 [y/N] " answer
    [ "$answer" = y ] || fail "not confirmed"
}

# A workdir's name for "configs/paper.py:variant".
name_of() {
    local variant=${1#*.py}
    variant=${variant#:}
    echo "$(basename "${1%%.py*}")_${variant:-default}"
}

# Words quoted for a shell on another machine.
quoted() {
    printf '%q ' "$@"
}
