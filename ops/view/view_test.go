package view

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/part"
)

// host is a Dir that only knows its name.
type host struct{ ops.Dir }

func (host) Path(name string) string { return "/vms/" + name }

func ref(name string) ops.Ref { return ops.Ref{Dir: host{}, Name: name} }

var (
	childID  = ops.GUID{0xaa, 15: 1}
	parentID = ops.GUID{0xbb, 15: 2}
	diskID   = ops.GUID{0xcc, 15: 3}
	vhdxLike = &ops.Format{Name: "vhdx", Number: ops.FormatVHDX}
	vhdLike  = &ops.Format{Name: "vhd", Number: ops.FormatVHD}
	modified = time.Date(2024, 2, 29, 23, 59, 58, 123456789, time.FixedZone("", 3600))
)

// chain is a differencing VHDX on a fixed one.
func chain() []ops.Link {
	stored := []ops.ParentPath{{Kind: ops.PathRelative, Path: `.\base.vhdx`}, {Kind: ops.PathAbsolute, Path: `C:\vms\base.vhdx`}}
	return []ops.Link{
		{Ref: ref("child.avhdx"), Stored: stored, WantIDs: []ops.GUID{parentID}, Found: &ops.Found{
			Format: vhdxLike, Size: 107374182400,
			Stat: ops.FileStat{Size: 4194304, Blocks: 16, Mtime: modified, SectorSize: 4096},
			Info: ops.Info{Type: ops.Differencing, BlockSize: 2097152, LogicalSector: 512, PhysicalSector: 4096,
				DiskID: diskID, LinkID: childID, Creator: "a\x00<b>", Aligned: true, Log: ops.LogReplayed,
				Parent: &ops.Parent{IDs: []ops.GUID{parentID}, Paths: stored}},
		}},
		{Ref: ref("base.vhdx"), Rule: ops.RuleRelative, Found: &ops.Found{
			Format: vhdxLike, Size: 107374182400,
			Info: ops.Info{Type: ops.Fixed, BlockSize: 33554432, LogicalSector: 512, PhysicalSector: 4096, DiskID: diskID, LinkID: parentID, Aligned: true},
		}},
	}
}

// names are the JSON names of a struct in order.
func names(v any) []string {
	t := reflect.TypeOf(v)
	list := make([]string, t.NumField())
	for i := range list {
		list[i] = t.Field(i).Name
	}
	return list
}

func render(t *testing.T, v any) string {
	var b bytes.Buffer
	require.NoError(t, Encode(&b, v))
	return b.String()
}

func TestSettingDataHasTheServicesProperties(t *testing.T) {
	require.Equal(t, strings.Fields(`InstanceID Caption Description ElementName Type Format Path ParentPath
		ParentTimestamp ParentIdentifier MaxInternalSize BlockSize LogicalSectorSize PhysicalSectorSize
		VirtualDiskId DataAlignment PmemAddressAbstractionType IsPmemCompatible`), names(SettingData{}))
}

func TestSettingData(t *testing.T) {
	require.Equal(t, `{
  "InstanceID": "/vms/child.avhdx",
  "Caption": "Virtual Hard Disk Setting Data",
  "Description": "Setting Data for a Virtual Hard Disk",
  "ElementName": "child.avhdx",
  "Type": 4,
  "Format": 3,
  "Path": "/vms/child.avhdx",
  "ParentPath": "/vms/base.vhdx",
  "ParentTimestamp": null,
  "ParentIdentifier": "BB000000-0000-0000-0000-000000000002",
  "MaxInternalSize": 107374182400,
  "BlockSize": 2097152,
  "LogicalSectorSize": 512,
  "PhysicalSectorSize": 4096,
  "VirtualDiskId": "CC000000-0000-0000-0000-000000000003",
  "DataAlignment": 4096,
  "PmemAddressAbstractionType": 0,
  "IsPmemCompatible": false
}
`, render(t, NewSettingData(chain())))
}

func TestSettingDataOfAFixedDiskHasNoBlocks(t *testing.T) {
	d := NewSettingData(chain()[1:])
	require.Zero(t, d.BlockSize)
	require.Equal(t, "", d.ParentPath)
	require.Equal(t, "", d.ParentIdentifier)
	require.Nil(t, d.ParentTimestamp)
}

func TestSettingDataNamesTheRecordedParentWhenItIsMissing(t *testing.T) {
	links := chain()[:1]
	links[0].Err = ops.Errorf(ops.ErrParentMissing, ops.StatusParentNotFound, "base.vhdx")
	links[0].Found.Info.Parent.Timestamp = modified
	d := NewSettingData(links)
	require.Equal(t, `.\base.vhdx`, d.ParentPath)
	require.Equal(t, "20240229225958.123456+000", *d.ParentTimestamp)
}

func TestSettingDataOfAnUnknownFile(t *testing.T) {
	d := NewSettingData([]ops.Link{{Ref: ref("x.vhdx"), Found: &ops.Found{Err: ops.ErrCorrupt}}})
	require.Zero(t, d.Type)
	require.Zero(t, d.Format)
	require.Equal(t, "/vms/x.vhdx", d.Path)
}

func TestStateStartsWithTheServicesProperties(t *testing.T) {
	require.Equal(t, strings.Fields(`FileSize InUse MinInternalSize PhysicalSectorSize Alignment
		FragmentationPercentage Timestamp`), names(State{})[:7])
}

func TestState(t *testing.T) {
	floor := int64(107373150720)
	s := NewState(chain(), Measured{File: chain()[0].Found.Stat, MinInternalSize: &floor, Children: []string{"/vms/leaf.avhdx"}},
		Live{Attached: true, Device: "/dev/loop3", OpenHandles: 2, LastOperation: &ops.Answer{Operation: "check"}})
	require.Equal(t, `{
  "FileSize": 4194304,
  "InUse": true,
  "MinInternalSize": 107373150720,
  "PhysicalSectorSize": 4096,
  "Alignment": 1,
  "FragmentationPercentage": null,
  "Timestamp": "20240229225958.123456+000",
  "Type": "differencing",
  "AllocatedSize": 8192,
  "Attached": true,
  "Device": "/dev/loop3",
  "OpenHandles": 2,
  "Children": [
    "/vms/leaf.avhdx"
  ],
  "Creator": "a\u0000<b>",
  "Label": "",
  "Identifier": "AA000000-0000-0000-0000-000000000001",
  "LogState": "dirty, replayed in memory",
  "LastOperation": {
    "Operation": "check",
    "ReturnValue": 0
  },
  "Anomalies": [],
  "StatusCode": 0
}
`, render(t, s))
}

func TestStateOfABrokenImageSaysWhy(t *testing.T) {
	links := []ops.Link{{Ref: ref("x.vhdx"), Found: &ops.Found{Format: vhdxLike,
		Err: ops.Corruptf(ops.StatusBATCorrupt, "vhdx: bat entry 812: offset 0x7f00000 past end of file 0x6c00000")}}}
	s := NewState(links, Measured{File: ops.FileStat{Size: 5}}, Live{})
	require.Equal(t, "vhdx: bat entry 812: offset 0x7f00000 past end of file 0x6c00000: image is corrupt. Run check for all findings; nothing was changed.", s.Error)
	require.Equal(t, "EUCLEAN", s.Errno)
	require.Equal(t, uint32(0xC03A000A), s.StatusCode)
	require.Equal(t, uint32(512), s.PhysicalSectorSize)
	require.Contains(t, render(t, s), `"Anomalies": [],`)
}

func TestStateOfABrokenParentSaysWhy(t *testing.T) {
	links := chain()
	links[1].Found.Err = ops.Corruptf(0, "vhdx: header: both copies are damaged")
	require.Contains(t, NewState(links, Measured{}, Live{}).Error, "both copies are damaged")
	links = chain()[:1]
	links[0].Err = ops.Errorf(ops.ErrParentMismatch, ops.StatusIDMismatch, "base.vhdx")
	require.Equal(t, "ESTALE", NewState(links, Measured{}, Live{}).Errno)
}

func TestChain(t *testing.T) {
	links := chain()
	links[0].Passed = []ops.Candidate{{Path: "/vms/old/base.vhdx", Rule: ops.RuleName, ID: childID, Why: "has another id"}}
	c := NewChain(links)
	require.True(t, c.Whole)
	require.Equal(t, []ChainImage{
		{Path: "/vms/child.avhdx", Format: "vhdx", Type: "differencing", Size: 107374182400, Modified: DateTime(modified), Identifier: childID, VirtualDiskId: diskID,
			Parent: &ParentLink{
				StoredPaths:       []StoredPath{{"relative", `.\base.vhdx`}, {"absolute", `C:\vms\base.vhdx`}},
				StoredIdentifiers: []ops.GUID{parentID},
				Path:              "/vms/base.vhdx", FoundBy: "relative path", Identifier: parentID, Holds: true,
				PassedOver: []PassedOver{{"/vms/old/base.vhdx", "name beside the child", childID, "has another id"}},
			}},
		{Path: "/vms/base.vhdx", Format: "vhdx", Type: "fixed", Size: 107374182400, FoundBy: "relative path", Identifier: parentID, VirtualDiskId: diskID},
	}, c.Images)
}

func TestChainThatEndsEarly(t *testing.T) {
	links := chain()[:1]
	links[0].Err = ops.Errorf(ops.ErrParentMissing, ops.StatusParentNotFound, "base.vhdx")
	links[0].Likely = []ops.Likely{{Found: &ops.Found{Ref: ref("copy.vhdx"), Size: 5, Info: ops.Info{LinkID: parentID, DiskID: diskID}}, Why: []string{"a recorded name"}}}
	c := NewChain(links)
	require.Equal(t, []Likely{{"/vms/copy.vhdx", parentID, diskID, 5, nil, []string{"a recorded name"}}}, c.Images[0].Parent.Likely)
	require.False(t, c.Whole)
	require.Equal(t, "ENOLINK", c.Errno)
	p := c.Images[0].Parent
	require.False(t, p.Holds)
	require.Equal(t, "", p.Path)
	require.Equal(t, "ENOLINK", p.Errno)
	require.Equal(t, uint32(0xC03A000D), p.StatusCode)
}

// An image that cannot be opened has no link to judge.
func TestChainOfAnUnreadableImage(t *testing.T) {
	corrupt := ops.Corruptf(0, "vhdx: header: both copies are damaged")
	c := NewChain([]ops.Link{{Ref: ref("x.vhdx"), Found: &ops.Found{Err: corrupt}, Err: corrupt}})
	require.False(t, c.Whole)
	require.Nil(t, c.Images[0].Parent)
	require.Contains(t, c.Images[0].Error, "both copies are damaged")
}

func TestDateTime(t *testing.T) {
	require.Nil(t, DateTime(time.Time{}))
	require.Equal(t, "20000101000000.000000+000", *DateTime(time.Unix(946684800, 0)))
}

func TestServiceHasTheServicesProperties(t *testing.T) {
	require.Equal(t, strings.Fields(`InstanceID Caption Description ElementName InstallDate OperationalStatus
		StatusDescriptions Status HealthState CommunicationStatus DetailedStatus OperatingStatus PrimaryStatus
		EnabledState OtherEnabledState RequestedState EnabledDefault TimeOfLastStateChange AvailableRequestedStates
		TransitioningToState SystemCreationClassName SystemName CreationClassName Name PrimaryOwnerName
		PrimaryOwnerContact StartMode Started`), names(Service{}))
	var doc map[string]any
	require.NoError(t, json.Unmarshal([]byte(render(t, NewService("box", modified))), &doc))
	require.Len(t, doc, 28)
	require.Equal(t, "Hyper-V Image Management Service", doc["Caption"])
	require.Equal(t, "Provides Image Management servicing for Hyper-V", doc["Description"])
	require.Equal(t, []any{2.0}, doc["OperationalStatus"])
	require.Equal(t, []any{"OK"}, doc["StatusDescriptions"])
	require.Equal(t, 5.0, doc["HealthState"])
	require.Equal(t, 2.0, doc["EnabledState"])
	require.Equal(t, 12.0, doc["RequestedState"])
	require.Equal(t, 2.0, doc["EnabledDefault"])
	require.Equal(t, "20240229225958.123456+000", doc["TimeOfLastStateChange"])
	require.Equal(t, "Msvm_ComputerSystem", doc["SystemCreationClassName"])
	require.Equal(t, "box", doc["SystemName"])
	require.Equal(t, "Msvm_ImageManagementService", doc["CreationClassName"])
	require.Equal(t, "vhdsvc", doc["Name"])
	require.Equal(t, true, doc["Started"])
	for _, null := range strings.Fields(`InstallDate Status CommunicationStatus DetailedStatus OperatingStatus PrimaryStatus
		OtherEnabledState AvailableRequestedStates TransitioningToState PrimaryOwnerName PrimaryOwnerContact StartMode`) {
		require.Nil(t, doc[null], null)
		require.Contains(t, doc, null)
	}
}

func TestPartitions(t *testing.T) {
	floor := int64(3 << 20)
	p := NewPartitions(&part.Table{Scheme: part.GPT, ID: "x", MinInternalSize: &floor, Partitions: []part.Partition{
		{Index: 1, Start: 1 << 20, Length: 1 << 20, Type: "t", TypeName: "Linux", Name: "a\"\n", UUID: "u"},
		{Index: 2, Start: 1 << 20, Length: 1 << 20, NoFile: "overlaps partition 1"},
	}}, 4<<20)
	require.Equal(t, "p1", p.Partitions[0].File)
	require.Equal(t, "", p.Partitions[1].File)
	require.Equal(t, int64(4194304), p.Size)
	require.Contains(t, render(t, p), `"Label": "a\"\n",`)
}

func TestTheUnitOfAPartitionTable(t *testing.T) {
	for _, tt := range []struct {
		name string
		info ops.Info
		want uint32
	}{
		{"disk", ops.Info{Type: ops.Fixed, LogicalSector: 512}, 512},
		{"4K disk", ops.Info{Type: ops.Dynamic, LogicalSector: 4096}, 4096},
		{"CD", ops.Info{LogicalSector: 2048}, 512},
		{"nothing known", ops.Info{Type: ops.Fixed}, 512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, TableSector(&ops.Found{Info: tt.info}))
		})
	}
}

func TestGraph(t *testing.T) {
	missing := ops.Errorf(ops.ErrParentMissing, 0, "p")
	g := NewGraph(&ops.Graph{Images: []ops.GraphNode{
		{Ref: ref("a.vhdx"), Found: &ops.Found{Format: vhdxLike, Info: ops.Info{Type: ops.Dynamic, LinkID: parentID}}, Children: []string{"/vms/c.vhdx"}, SameID: []string{"/vms/b.vhdx"}},
		{Ref: ref("b.vhdx"), Found: &ops.Found{Format: vhdxLike, Info: ops.Info{Type: ops.Dynamic, LinkID: parentID}}, SameID: []string{"/vms/a.vhdx"}},
		{Ref: ref("c.vhdx"), Found: &ops.Found{Format: vhdxLike, Info: ops.Info{Type: ops.Differencing}}, Parent: "/vms/a.vhdx", Rule: ops.RuleID},
		{Ref: ref("d.vhd"), Found: &ops.Found{Format: vhdLike}, Err: missing, ChainErr: missing},
		{Ref: ref("e.vhd"), Found: &ops.Found{Format: vhdLike}, Err: ops.Errorf(ops.ErrParentMismatch, 0, "p"), ChainErr: missing},
		{Ref: ref("f.vhd"), Found: &ops.Found{Err: ops.ErrCorrupt}, Err: missing},
		{Ref: ref("g.avhd"), Found: &ops.Found{Format: vhdLike, Info: ops.Info{Parent: &ops.Parent{IDs: []ops.GUID{parentID}, Paths: []ops.ParentPath{{Kind: ops.PathRelative, Path: `.\d.vhd`}}}}},
			Parent: "/vms/d.vhd", ChainErr: missing, Depth: 2},
		{Ref: ref("h.avhd"), Found: &ops.Found{Format: vhdLike}, ChainErr: ops.Errorf(ops.ErrCycle, 0, "h")},
		{Ref: ref("i.avhd"), Found: &ops.Found{Format: vhdLike, Info: ops.Info{Parent: &ops.Parent{IDs: []ops.GUID{childID}}}}, Err: ops.ErrCorrupt, ChainErr: ops.ErrCorrupt},
		{Ref: ref("s.vhds"), Found: &ops.Found{Format: vhdLike, Set: &ops.Set{}, Leaf: ref("c.vhdx")}},
	}})
	require.Len(t, g.Images, 10)
	require.Equal(t, []string{"/vms/d.vhd", "/vms/e.vhd", "/vms/g.avhd", "/vms/h.avhd", "/vms/i.avhd"}, g.Orphans)
	require.Equal(t, []string{"/vms/h.avhd"}, g.Cycles)
	require.Equal(t, []string{"/vms/i.avhd"}, g.UnreadableParents)
	require.Nil(t, g.Images[6].Wanted, "its own parent is there")
	require.Equal(t, "ENOLINK", g.Images[6].Errno)
	require.Equal(t, &Wanted{Identifiers: []ops.GUID{childID}}, g.Images[8].Wanted)
	require.Equal(t, "/vms/c.vhdx", g.Images[9].Leaf)
	require.Equal(t, "/vms/a.vhdx", g.Images[2].Parent)
	require.Equal(t, []string{"/vms/d.vhd"}, g.MissingParents)
	require.Equal(t, []string{"/vms/e.vhd"}, g.MismatchedParents)
	require.Equal(t, []string{"/vms/f.vhd"}, g.UnreadableImages)
	require.Equal(t, []string{"/vms/a.vhdx"}, g.ImagesWithChildren)
	require.Equal(t, [][]string{{"/vms/a.vhdx", "/vms/b.vhdx"}}, g.DuplicateIDs)
	require.Equal(t, "EUCLEAN", g.Images[5].Errno)
}

func TestMetrics(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, WriteMetrics(&b, []Metric{
		{Name: "vhdfs_reads_total", Help: "Reads \\ of\nraw.", Type: "counter", Samples: []Sample{{Value: 12345678901}}},
		{Name: "vhdfs_ops", Help: "x", Type: "gauge", Samples: []Sample{{Labels: [][2]string{{"op", "a\"\\\n"}, {"b", "c"}}, Value: 0.5}}},
	}))
	require.Equal(t, `# HELP vhdfs_reads_total Reads \\ of\nraw.
# TYPE vhdfs_reads_total counter
vhdfs_reads_total 12345678901
# HELP vhdfs_ops x
# TYPE vhdfs_ops gauge
vhdfs_ops{op="a\"\\\n",b="c"} 0.5
`, b.String())
}
