package main

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"vhdfs/fs"
	"vhdfs/ops"
	"vhdfs/ops/view"
)

// imageDocuments are the documents of an image as the mount shows them. The
// mount is asked for what it knows as soon as server points to it.
func imageDocuments(lib *ops.Library, server *atomic.Pointer[fs.Server]) []fs.Document {
	list := make([]fs.Document, len(view.Documents))
	for i := range view.Documents {
		d := &view.Documents[i]
		list[i] = fs.Document{Name: d.Name, Can: d.Can, Long: d.Long,
			Render: func(_ context.Context, ref ops.Ref, w io.Writer) error {
				s := &view.Source{Library: lib, Image: ref}
				if mount := server.Load(); mount != nil {
					s.Live = mount.Live(ref)
				}
				return d.Render(w, s)
			},
		}
	}
	return list
}

// daemonInfo is daemon.json: what umount and people need to find this process.
type daemonInfo struct {
	PID     int
	Version string
	Images  string
	Started *string
}

// serviceDocuments are the documents in .vhdfs.
func serviceDocuments(lib *ops.Library, images string) []fs.Document {
	started := time.Now()
	return []fs.Document{
		{Name: "service.json", Render: func(_ context.Context, _ ops.Ref, w io.Writer) error {
			host, err := os.Hostname()
			if err != nil {
				return err
			}
			return view.Encode(w, view.NewService(host, started))
		}},
		{Name: "graph.json", Long: true, Render: func(_ context.Context, _ ops.Ref, w io.Writer) error {
			g, err := lib.Graph()
			if err != nil {
				return err
			}
			return view.Encode(w, view.NewGraph(g))
		}},
		{Name: "daemon.json", Render: func(_ context.Context, _ ops.Ref, w io.Writer) error {
			return view.Encode(w, daemonInfo{os.Getpid(), version, images, view.DateTime(started)})
		}},
	}
}
