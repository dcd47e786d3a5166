package view

import (
	"strconv"

	"vhdfs/ops"
	"vhdfs/ops/part"
)

// Partitions is partitions.json. Offsets and lengths are bytes.
type Partitions struct {
	Scheme          part.Scheme
	ID              string
	Size            int64 // of the disk
	Partitions      []Partition
	FirstUsable     int64
	LastUsable      int64
	UnallocatedTail int64
	MinInternalSize *int64
	Anomalies       []ops.Anomaly
}

// Partition is one partition; File is its name in partitions/.
type Partition struct {
	Number     int
	File       string `json:",omitempty"`
	Start      int64
	Length     int64
	Type       string
	TypeName   string
	Label      string
	UUID       string
	Bootable   bool
	Attributes uint64
	NoFile     string `json:",omitempty"` // why it has no file
}

// NewPartitions makes it from the table of a disk of size bytes.
func NewPartitions(t *part.Table, size int64) *Partitions {
	p := &Partitions{
		Scheme:          t.Scheme,
		ID:              t.ID,
		Size:            size,
		Partitions:      make([]Partition, len(t.Partitions)),
		FirstUsable:     t.FirstUsable,
		LastUsable:      t.LastUsable,
		UnallocatedTail: t.UnallocatedTail,
		MinInternalSize: t.MinInternalSize,
		Anomalies:       append([]ops.Anomaly{}, t.Anomalies...),
	}
	for i := range t.Partitions {
		e := &t.Partitions[i]
		p.Partitions[i] = Partition{
			Number: e.Index, Start: e.Start, Length: e.Length, Type: e.Type, TypeName: e.TypeName,
			Label: e.Name, UUID: e.UUID, Bootable: e.Bootable, Attributes: e.Attributes, NoFile: e.NoFile,
		}
		if e.NoFile == "" {
			p.Partitions[i].File = PartitionFile(e.Index)
		}
	}
	return p
}

// PartitionFile is the name of a partition in partitions/: "p1".
func PartitionFile(index int) string { return "p" + strconv.Itoa(index) }
