package view

import (
	"errors"

	"vhdfs/ops"
	"vhdfs/ops/part"
)

// State is Msvm_VirtualHardDiskState, its seven properties first. Sizes are
// bytes; null means that vhdfs cannot tell.
type State struct {
	FileSize                int64 // length of the file
	InUse                   bool  // attached, or open in the mount that is asked
	MinInternalSize         *int64
	PhysicalSectorSize      uint32 // of the host's disk; 512 where the host does not say
	Alignment               uint32 // 1: payload at multiples of 4 KiB
	FragmentationPercentage *uint32
	Timestamp               *string // stored in a VHD; of the file for the others

	Type           string // "fixed", "dynamic", "differencing" or "raw"
	AllocatedSize  int64  // what the host keeps for the file
	Attached       bool
	Device         string
	OpenHandles    int
	Children       []string
	Creator        string
	Label          string
	Identifier     ops.GUID // what a child records of this image
	LogState       string
	ReadOnlyReason string `json:",omitempty"` // why it cannot be opened for writing
	UndoRecord     string `json:",omitempty"` // file with what changes of the image replaced
	LastOperation  *ops.Answer
	PendingMerge   *PendingMerge `json:",omitempty"`
	MergedInto     string        `json:",omitempty"` // what the disk became while it was open
	Anomalies      []ops.Anomaly
	Error          string `json:",omitempty"` // why raw cannot be opened
	Errno          string `json:",omitempty"`
	StatusCode     uint32 // JobCompletionStatusCode of Error, 0 without
}

// Measured is what takes more than looking at the image's headers.
type Measured struct {
	File                    ops.FileStat // of the file that holds the disk
	MinInternalSize         *int64
	FragmentationPercentage *uint32
	Children                []string
	UndoRecord              string
}

// NewState makes it from a chain, the image itself first.
func NewState(links []ops.Link, m Measured, live Live) *State {
	found := links[0].Found
	info := &found.Info
	stamp := info.Timestamp
	if stamp.IsZero() {
		stamp = m.File.Mtime
	}
	s := &State{
		FileSize:                m.File.Size,
		InUse:                   live.Attached || live.OpenHandles > 0,
		MinInternalSize:         m.MinInternalSize,
		PhysicalSectorSize:      m.File.SectorSize,
		FragmentationPercentage: m.FragmentationPercentage,
		Timestamp:               DateTime(stamp),
		Type:                    info.Type.String(),
		AllocatedSize:           m.File.Blocks * 512,
		Attached:                live.Attached,
		Device:                  live.Device,
		OpenHandles:             live.OpenHandles,
		Children:                append([]string{}, m.Children...),
		Creator:                 info.Creator,
		Label:                   info.Label,
		Identifier:              info.LinkID,
		LogState:                string(info.Log),
		ReadOnlyReason:          info.ReadOnly,
		UndoRecord:              m.UndoRecord,
		LastOperation:           live.LastOperation,
		Anomalies:               append([]ops.Anomaly{}, info.Anomalies...),
	}
	if s.PhysicalSectorSize == 0 {
		s.PhysicalSectorSize = 512
	}
	if info.Aligned {
		s.Alignment = 1
	}
	if err := broken(links); err != nil {
		s.Error, s.Errno, s.StatusCode = ops.Sentence(err), ops.Errno(err), uint32(ops.StatusOf(err))
	}
	return s
}

// broken is why the image cannot be read through its chain; nil when it can.
func broken(links []ops.Link) error {
	for i := range links {
		if err := links[i].Found.Err; err != nil {
			return err
		}
		if err := links[i].Err; err != nil {
			return err
		}
	}
	return nil
}

func (s *Source) state() (*State, error) {
	links, err := s.Library.ChainOf(s.Image)
	if err != nil {
		return nil, err
	}
	m := Measured{File: links[0].Found.Stat, UndoRecord: links[0].Found.UndoRecord()}
	if f := links[0].Found; f.Set != nil && f.Err == nil {
		leaf, err := s.Library.Inspect(f.Leaf)
		if err != nil {
			return nil, err
		}
		m.File = leaf.Stat
	}
	if m.Children, err = s.children(); err != nil {
		return nil, err
	}
	if broken(links) == nil {
		m.MinInternalSize = s.minInternalSize()
		m.FragmentationPercentage = s.fragmentation(links[0].Found)
	}
	state := NewState(links, m, s.Live)
	state.PendingMerge = pendingMerge(s.Library, links)
	if into, ok := s.Library.MergedInto(s.Image); ok {
		state.MergedInto = into.Path()
	}
	return state, nil
}

func (s *Source) children() ([]string, error) {
	refs, err := s.Library.ChildrenShown(s.Image)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(refs))
	for i, r := range refs {
		paths[i] = r.Path()
	}
	return paths, nil
}

// minInternalSize is null where the service's answer is absent: no partition
// table, or one that cannot be read. The state of a damaged disk is what somebody
// asks for who has just failed to read it.
func (s *Source) minInternalSize() *int64 {
	t, _, err := s.table()
	if err != nil {
		return nil
	}
	return t.MinInternalSize
}

// table reads the partition table through the chain.
func (s *Source) table() (t *part.Table, size int64, err error) {
	found, err := s.Library.Inspect(s.Image)
	if err != nil {
		return nil, 0, err
	}
	h, err := s.Library.Look(s.Image)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	t, err = part.Read(h, h.Size(), TableSector(found))
	return t, h.Size(), err
}

// TableSector is the unit in bytes in which an image's partition table counts:
// the logical sector of a disk. A table on a CD is there for those who write the
// image to a disk, and counts in sectors of 512.
func TableSector(f *ops.Found) uint32 {
	if f.Info.Type == 0 || f.Info.LogicalSector == 0 {
		return 512
	}
	return f.Info.LogicalSector
}
