package fs

import (
	"context"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"

	"vhdfs/ops"
	"vhdfs/ops/part"
	"vhdfs/ops/view"
)

// image is the directory of the image at a path of the image folder.
func (m *mount) image(p string) *table {
	return &table{
		m:    m,
		key:  "image:" + p,
		stat: func() (*ops.FileStat, error) { st, err := m.stat(p); return &st, err },
		rows: func(context.Context) ([]row, error) { return m.imageRows(p) },
	}
}

// imageRows are the files of an image. One that cannot be opened has them too,
// so that it can be diagnosed: only what its format and type never have is left
// out.
func (m *mount) imageRows(p string) ([]row, error) {
	ref := m.lib.Top(p)
	found, err := m.lib.Inspect(ref)
	if err != nil {
		return nil, err
	}
	rows := []row{
		{name: "raw", kind: syscall.S_IFREG, node: func() (node, gofs.StableAttr, error) {
			return m.content(found, window{length: found.Size}, nil)
		}},
	}
	if found.Err == nil {
		rows = append(rows, subTable("partitions", m.partitions(p)))
	}
	if found.Set != nil {
		rows = append(rows, subTable("snapshots", m.snapshots(p)))
	}
	if found.Info.Parent != nil {
		rows = append(rows, row{name: "parent", kind: syscall.S_IFLNK, node: func() (node, gofs.StableAttr, error) {
			return &link{m: m, path: p}, gofs.StableAttr{}, nil
		}})
	}
	for _, d := range m.opts.Image {
		if d.Can != nil && !d.Can(found) {
			continue
		}
		f := m.document(d, ref)
		if op := m.writes(d, found); op != nil {
			f = m.edited(d, op, ref)
		}
		rows = append(rows, small(d.Name, f))
	}
	for _, op := range m.opts.Ops {
		if !op.Service && op.Document == "" && (op.Can == nil || op.Can(found)) {
			rows = append(rows, small(op.Name, m.control(op, ref)))
		}
	}
	return rows, nil
}

// partitions is the directory of the partitions that the image's table names.
func (m *mount) partitions(p string) *table {
	return &table{
		m:    m,
		key:  "partitions:" + p,
		stat: func() (*ops.FileStat, error) { st, err := m.stat(p); return &st, err },
		rows: func(context.Context) ([]row, error) { return m.partitionRows(p) },
	}
}

// partitionRows reads the partition table, which opens the image.
func (m *mount) partitionRows(p string) ([]row, error) {
	ref := m.lib.Top(p)
	found, err := m.lib.Inspect(ref)
	if err != nil {
		return nil, err
	}
	if found.Err != nil {
		return nil, found.Err
	}
	tab, err := m.readTable(ref, found)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, pt := range tab.Partitions {
		if pt.NoFile != "" {
			continue
		}
		w := window{part: pt.Index, off: pt.Start, length: pt.Length}
		rows = append(rows, row{name: view.PartitionFile(pt.Index), kind: syscall.S_IFREG,
			node: func() (node, gofs.StableAttr, error) { return m.content(found, w, nil) }})
	}
	return rows, nil
}

func (m *mount) readTable(ref ops.Ref, found *ops.Found) (_ *part.Table, err error) {
	h, err := m.lib.Open(ref, ops.Read)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := h.Close(); err == nil {
			err = e
		}
	}()
	return part.Read(h, h.Size(), view.TableSector(found))
}

// Live is what only the mount knows of an image.
func (s *Server) Live(ref ops.Ref) view.Live { return s.m.live(ref) }

func (m *mount) live(ref ops.Ref) view.Live {
	var l view.Live
	found, err := m.lib.Inspect(ref)
	if err != nil {
		return l // the document says so itself
	}
	if a, ok := m.lib.AttachedAs(ref); ok {
		l.Attached, l.Device = true, a.Device
	}
	id := found.Stat.ID
	m.mu.Lock()
	defer m.mu.Unlock()
	l.LastOperation = m.mu.lastOps[ref.Name]
	if d := m.mu.disks[id]; d != nil {
		for _, v := range d.windows {
			l.OpenHandles += len(v.handles)
		}
	}
	return l
}
