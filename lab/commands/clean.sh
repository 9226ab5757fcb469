# Sourced by each study: stops where files that make results differ from the last commit.
if ! git diff --quiet HEAD -- . ':(exclude)results' ':(exclude)figure' ':(exclude)*.md'; then
    echo "files differ from the last commit, so nobody could make these results again" >&2
    exit 2
fi
