package view

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

func opSet(t *testing.T) *ops.Op {
	i := slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Document == "settings.json" })
	require.GreaterOrEqual(t, i, 0)
	return ops.All[i]
}

// What differs is the request; what may not differ is named.
func TestEditSettings(t *testing.T) {
	id, err := ops.ParseGUID("0000000a-0000-4000-8000-000000000000")
	require.NoError(t, err)
	d := &SettingData{InstanceID: "/vms/c.avhdx", Caption: "Virtual Hard Disk Setting Data", Type: 4, Format: 3, Path: "/vms/c.avhdx", ParentPath: "/vms/p.vhdx",
		ParentIdentifier: "00000001-0000-4000-8000-000000000000", MaxInternalSize: 1 << 40, PhysicalSectorSize: 4096, VirtualDiskId: id}
	for _, tt := range []struct {
		name string
		text string
		want string // the request; "" for none
		err  string
	}{
		{"one property", `{"PhysicalSectorSize": 512}`, `{"PhysicalSectorSize":512}`, ""},
		{"as text", `{"physicalsectorsize": "512"}`, `{"PhysicalSectorSize":"512"}`, ""},
		{"by its short name", `{"physical": 512}`, `{"PhysicalSectorSize":512}`, ""},
		{"with what all take", `{"VirtualDiskId":"{0000000B-0000-4000-8000-000000000000}","dryrun":true,"Wait":false}`,
			`{"DryRun":true,"VirtualDiskId":"{0000000B-0000-4000-8000-000000000000}","Wait":false}`, ""},
		{"beside what is the same", `{"Path":"/vms/c.avhdx","MaxInternalSize":1099511627776,"ParentPath":"new.vhdx","Type":4,"ParentTimestamp":null}`, `{"ParentPath":"new.vhdx"}`, ""},
		{"null is not said", `{"ParentPath":null,"MaxInternalSize":null}`, "", ""},
		{"equal", `{"PhysicalSectorSize":4096,"VirtualDiskId":"{0000000A-0000-4000-8000-000000000000}","ParentPath":"/vms/p.vhdx"}`, "", ""},
		{"empty", `{}`, "", ""},
		{"only what all take", `{"dryrun":true}`, "", ""},
		{"two, which the operation refuses", `{"PhysicalSectorSize":512,"ParentPath":"x"}`, `{"ParentPath":"x","PhysicalSectorSize":512}`, ""},
		{"what cannot be changed", `{"MaxInternalSize":5,"PhysicalSectorSize":512}`, "", "MaxInternalSize is 1099511627776 and cannot be changed to 5; ParentPath, PhysicalSectorSize, VirtualDiskId can"},
		{"another image", `{"Path":"/vms/other.vhdx"}`, "", `Path is "/vms/c.avhdx" and cannot be changed to "/vms/other.vhdx"`},
		{"another type of value", `{"Type":"4"}`, "", `Type is 4 and cannot be changed to "4"`},
		{"unknown", `{"Size":5}`, "", `unknown property "Size"`},
		{"twice", `{"PhysicalSectorSize":512,"physical":512}`, "", `"physical" is given twice`},
		{"twice the same", `{"Type":4,"type":4}`, "", `"type" is given twice`},
		{"no object", `[1]`, "", "settings.json: not a JSON object"},
		{"cut off", `{"Type":4`, "", "settings.json: the JSON object is not closed"},
		{"no JSON", `{"Type":4,}`, "", "settings.json: invalid character"},
		{"two objects", `{} {}`, "", "something follows the JSON object"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := d.Edit(opSet(t), []byte(tt.text))
			if tt.err != "" {
				require.ErrorIs(t, err, ops.ErrUsage)
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			if tt.want != "" {
				_, err := opSet(t).Parse(got)
				require.NoError(t, err)
			}
		})
	}
}

// The document as it is read asks for nothing; with one value edited for that.
func TestEditTheWholeDocument(t *testing.T) {
	d := NewSettingData([]ops.Link{{Ref: ref("a.vhdx"), Found: &ops.Found{Ref: ref("a.vhdx"), Format: &ops.Format{Number: 3}, Info: ops.Info{Type: ops.Dynamic, PhysicalSector: 4096}}}})
	var b bytes.Buffer
	require.NoError(t, Encode(&b, d))
	got, err := d.Edit(opSet(t), b.Bytes())
	require.NoError(t, err)
	require.Empty(t, got)
	edited := strings.Replace(b.String(), `"PhysicalSectorSize": 4096`, `"PhysicalSectorSize": 512`, 1)
	require.True(t, json.Valid([]byte(edited)))
	got, err = d.Edit(opSet(t), []byte(edited))
	require.NoError(t, err)
	require.Equal(t, `{"PhysicalSectorSize":512}`, got)
}
