package fs

import (
	"context"
	"io"
	"strconv"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// service is .vhdfs/.
func (m *mount) service() *table {
	return m.serviceTable(serviceName, func(context.Context) ([]row, error) {
		rows := []row{
			subTable("help", m.serviceTable(serviceName+"/help", m.helpRows)),
			subTable("jobs", m.serviceTable(serviceName+"/jobs", m.jobsRows)),
			subTable("mounted", m.serviceTable(serviceName+"/mounted", m.mountedRows)),
			small("log", m.text(m.oplog.Render)),
			small("metrics", m.text(m.renderMetrics)),
		}
		for _, op := range m.opts.Ops {
			if op.Service {
				rows = append(rows, small(op.Name, m.control(op, m.lib.Top("."))))
			}
		}
		for _, d := range m.opts.Service {
			rows = append(rows, small(d.Name, m.document(d, ops.Ref{})))
		}
		return rows, nil
	})
}

func (m *mount) serviceTable(key string, rows func(context.Context) ([]row, error)) *table {
	stat := func() (*ops.FileStat, error) {
		return &ops.FileStat{Mode: 0o444, Mtime: m.started, Ctime: m.started}, nil
	}
	return &table{m: m, key: key, stat: stat, rows: rows}
}

// helpRows are the usages of all operations.
func (m *mount) helpRows(context.Context) ([]row, error) {
	rows := make([]row, len(m.opts.Ops))
	for i, op := range m.opts.Ops {
		rows[i] = small(op.Name, m.text(func(w io.Writer) error { return usage(op, w) }))
	}
	return rows, nil
}

// mountedRows are the images that are attached.
func (m *mount) mountedRows(context.Context) ([]row, error) {
	list := m.lib.Attached()
	rows := make([]row, len(list))
	for i, a := range list {
		name := strconv.FormatUint(uint64(a.Number), 10) + ".json"
		rows[i] = small(name, m.text(func(w io.Writer) error { return view.Encode(w, a.Describe()) }))
	}
	return rows, nil
}
