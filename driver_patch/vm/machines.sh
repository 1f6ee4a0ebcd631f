# SPDX-License-Identifier: MIT OR GPL-2.0
# Sourced by the scripts that run several machines.

# side_by_side FUNCTION RELEASE…: FUNCTION for each release at once. Each line that one prints is
# printed as it comes, after the release's name, and kept in $output/RELEASE. Fails where one fails.
side_by_side() {
    local function=$1 release status=0 machine machines=()
    for release in "${@:2}"; do
        ("$function" "$release" 2>&1 | tee "$output/$release" | sed -u "s/^/$release  /") &
        machines+=($!)
    done
    for machine in "${machines[@]}"; do
        wait "$machine" || status=1
    done
    return $status
}
