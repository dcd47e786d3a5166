package hostile

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/hostile/folder"
)

// Whatever names and texts an image brings: an answer is one line of JSON.
func TestH46TextsOfImages(t *testing.T) {
	folder.Watch(t)
	const wild = "\x1b[2J\r%n%s\u2028\u202e\"}\n"
	x := childX(1, 2, "relative_path", `.\`+wild, wild, wild)
	x.Creator = wild
	v := childV(1, 2, "W2ru", `.\`+wild, "", wild)
	v.Creator = "\x1b\n\"\x00"
	label := disc(func(_, pvd []byte) { copy(pvd[40:], wild) })
	long := strings.Repeat("n", 250) + ".vhdx"
	names := []string{"x.vhdx", "v.vhd", "l.iso", "new\nline\x1b[2J%n.vhdx", "quo\"te.vhd", "\xff\xfe.vhdx", long, "bad" + wild + ".vhdx"}
	dir := folder.Make(t, folder.Files{
		"x.vhdx": x, "v.vhd": v, "l.iso": label, names[3]: x, names[4]: v, names[5]: x, long: x, names[7]: folder.Raw("no image"),
	})
	folder.Untouched(t, dir)
	l := folder.Open(t, dir)
	answers := 0
	for _, name := range names {
		for _, op := range ops.All {
			if op.Name != "check" && op.Name != "validate" {
				continue
			}
			text, err := json.Marshal(op.Do(t.Context(), &ops.Request{Library: l, Image: l.Top(name)}))
			require.NoError(t, err)
			answers++
			require.True(t, json.Valid(text))
			require.NotRegexp(t, `[\x00-\x1f\x7f]`, string(text), "%s of %q", op.Name, name)
		}
	}
	require.Equal(t, 16, answers)
}
