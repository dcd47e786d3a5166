package view

import (
	"path"

	"vhdfs/ops"
)

// SettingData is Msvm_VirtualHardDiskSettingData. Sizes are bytes. Type and
// Format are 0 where they are not known.
type SettingData struct {
	InstanceID                 string
	Caption                    string
	Description                string
	ElementName                string
	Type                       uint16
	Format                     uint16
	Path                       string
	ParentPath                 string  // found, else as recorded; "" without a parent
	ParentTimestamp            *string // null where the format stores none
	ParentIdentifier           string  // as the child records it; "" without a parent
	MaxInternalSize            int64
	BlockSize                  uint32 // 0 for fixed disks
	LogicalSectorSize          uint32
	PhysicalSectorSize         uint32
	VirtualDiskId              ops.GUID
	DataAlignment              uint64 // where payload starts: 4096 or 512
	PmemAddressAbstractionType uint16
	IsPmemCompatible           bool
}

// NewSettingData makes it from a chain, the image itself first.
func NewSettingData(links []ops.Link) *SettingData {
	first := &links[0]
	info := &first.Found.Info
	d := &SettingData{
		InstanceID:         first.Ref.Path(),
		Caption:            "Virtual Hard Disk Setting Data",
		Description:        "Setting Data for a Virtual Hard Disk",
		ElementName:        path.Base(first.Ref.Path()),
		Type:               uint16(info.Type),
		Format:             formatNumber(first.Found),
		Path:               first.Ref.Path(),
		MaxInternalSize:    first.Found.Size,
		BlockSize:          info.BlockSize,
		LogicalSectorSize:  info.LogicalSector,
		PhysicalSectorSize: info.PhysicalSector,
		VirtualDiskId:      info.DiskID,
		DataAlignment:      512,
	}
	if info.Aligned {
		d.DataAlignment = 4096
	}
	if info.Type == ops.Fixed {
		d.BlockSize = 0
	}
	if info.Parent != nil {
		d.ParentPath = parentPath(links)
		d.ParentTimestamp = DateTime(info.Parent.Timestamp)
		d.ParentIdentifier = firstID(info.Parent.IDs)
	}
	return d
}

// parentPath is where the parent is, else the first path that is recorded.
func parentPath(links []ops.Link) string {
	if len(links) > 1 {
		return links[1].Ref.Path()
	}
	if stored := links[0].Stored; len(stored) > 0 {
		return stored[0].Path
	}
	return ""
}

func firstID(ids []ops.GUID) string {
	if len(ids) == 0 {
		return ""
	}
	return idText(ids[0])
}

func formatNumber(f *ops.Found) uint16 {
	if f.Format == nil {
		return 0
	}
	return f.Format.Number
}

func formatName(f *ops.Found) string {
	if f.Format == nil {
		return ""
	}
	return f.Format.Name
}
