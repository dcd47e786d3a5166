package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops/view"
	"vhdfs/test/need"
)

// Copies of the images that other systems wrote get new settings and parents and
// are mended, and read the same as before.
func TestImagesOfOtherSystemsAreChanged(t *testing.T) {
	need.Tool(t, "jq")
	rows := need.CorpusRows(t)
	dir := t.TempDir()
	for _, r := range rows {
		if r.Format != "vhd" && r.Format != "vhdx" {
			continue
		}
		to := filepath.Join(dir, r.File)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o700))
		out, err := run(t, dir, nil, "cp", "--sparse=always", need.Corpus(t, r.File), to)
		require.NoError(t, err, out)
		require.NoError(t, os.Chmod(to, 0o600))
	}
	m := Start(t, dir)
	for _, r := range rows {
		if r.Format != "vhd" && r.Format != "vhdx" {
			continue
		}
		t.Run(r.File, func(t *testing.T) {
			image := m.Path(r.File)
			var before, after view.SettingData
			decode(t, filepath.Join(image, "settings.json"), &before)
			errors := m.Shell(t, "cd "+image+" && (echo run > check) 2> /dev/null || true; jq '[.Images[].Errors] | add' check")
			if r.Format == "vhdx" {
				changeSettings(t, m, image)
			} else {
				out, err := m.Try(t, "bash", "echo '{\"PhysicalSectorSize\":4096}' > "+image+"/settings.json")
				require.Error(t, err)
				require.Contains(t, out, "Operation not supported")
			}
			if r.Type == "differencing" {
				changeParent(t, m, image, &before)
			}
			m.Shell(t, "cd "+image+" && (echo repair=true > check) 2> /dev/null || jq -e '.Mended != null' check > /dev/null")
			decode(t, filepath.Join(image, "settings.json"), &after)
			require.Equal(t, before.ParentIdentifier, after.ParentIdentifier)
			readsAs(t, image, r)
			now := m.Shell(t, "cd "+image+" && (echo run > check) 2> /dev/null || true; jq '[.Images[].Errors] | add' check")
			require.LessOrEqual(t, number(t, now), number(t, errors), "no new errors")
		})
	}
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	require.NoError(t, err)
	return n
}

func changeSettings(t *testing.T, m *Mount, image string) {
	t.Helper()
	out := m.Shell(t, `cd `+image+`
		link=$(jq -r .Identifier state.json)
		echo VirtualDiskId=0123ABCD-0000-4000-8000-000000000001 > settings.json
		jq -r .VirtualDiskId settings.json
		was=$(jq .PhysicalSectorSize settings.json); new=$((4096 + 512 - was))
		sed "s/\"PhysicalSectorSize\": $was/\"PhysicalSectorSize\": $new/" settings.json > $IMAGES/edited.txt
		cat $IMAGES/edited.txt > settings.json
		[ $(jq .PhysicalSectorSize settings.json) = $new ]
		[ $link = $(jq -r .Identifier state.json) ] && echo "the link id stays"`)
	require.Equal(t, "0123ABCD-0000-4000-8000-000000000001\nthe link id stays", strings.TrimSpace(out))
}

func changeParent(t *testing.T, m *Mount, image string, was *view.SettingData) {
	t.Helper()
	out := m.Shell(t, `cd `+image+`
		jq '.Images[0].Parent.StoredPaths' chain.json > $IMAGES/paths.txt
		echo parent='`+was.ParentPath+`' > set-parent
		jq -r '.Images[0].Parent.FoundBy, .Whole' chain.json
		echo undo=true > set-parent
		jq '.Images[0].Parent.StoredPaths' chain.json | cmp - $IMAGES/paths.txt
		echo parent='`+was.ParentPath+`' > set-parent`)
	require.Equal(t, "relative path\ntrue", strings.TrimSpace(out))
}
