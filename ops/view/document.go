// Package view renders what vhdfs knows as documents: the service's embedded
// classes with its exact property names, and the documents that go beyond them.
//
// Documents are pure functions from the types of package ops to structs
// ([NewSettingData], [NewState], …); [Documents] is the table that the mount and
// the command line share. Text that came out of an image (creators, labels,
// recorded paths) goes through encoding/json alone, which escapes it.
package view

import (
	"encoding/json"
	"io"

	"vhdfs/ops"
)

// Source is what a document of one image is made from.
type Source struct {
	Library *ops.Library
	Image   ops.Ref
	Live    Live
}

// Live is what only a running mount knows of an image.
type Live struct {
	Attached      bool
	Device        string // "/dev/loop0"; "" when not attached, or pinned only
	OpenHandles   int
	LastOperation *ops.Answer
}

// Document is one JSON file of an image.
type Document struct {
	Name  string // "state.json"
	Brief string // one line, for the README
	// Can tells whether images like this one have the document; nil: all have.
	Can func(*ops.Found) bool
	// Render writes the whole document. It takes no lock on the image unless it
	// reads its content.
	Render func(w io.Writer, s *Source) error
	// Long documents may be megabytes.
	Long bool
}

// Documents is the table of an image's documents.
var Documents = []Document{
	{Name: "settings.json", Brief: "Msvm_VirtualHardDiskSettingData", Can: readable, Render: renderSettings},
	{Name: "state.json", Brief: "Msvm_VirtualHardDiskState, and what vhdfs knows besides", Render: renderState},
	{Name: "chain.json", Brief: "the image and every parent, with how each was found", Render: renderChain},
	{Name: "set.json", Brief: "Msvm_VHDSetInformation, of a VHD set", Can: isSet, Render: renderSet},
	{Name: "map.json", Brief: "runs of data, zero and hole with the file that holds them", Can: readable, Render: renderMap, Long: true},
	{Name: "partitions.json", Brief: "the partition table", Can: readable, Render: renderPartitions},
}

// readable leaves out images of which nothing could be read.
func readable(f *ops.Found) bool { return f.Err == nil || f.Info.Type != 0 }

// Encode writes v as an indented JSON document with a newline at its end.
func Encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func renderSettings(w io.Writer, s *Source) error {
	links, err := s.Library.ChainOf(s.Image)
	if err != nil {
		return err
	}
	return Encode(w, NewSettingData(links))
}

func renderChain(w io.Writer, s *Source) error {
	links, err := s.Library.ChainOf(s.Image)
	if err != nil {
		return err
	}
	c := NewChain(links)
	c.PendingMerge = pendingMerge(s.Library, links)
	return Encode(w, c)
}

func renderState(w io.Writer, s *Source) error {
	state, err := s.state()
	if err != nil {
		return err
	}
	return Encode(w, state)
}

func renderPartitions(w io.Writer, s *Source) error {
	t, size, err := s.table()
	if err != nil {
		return err
	}
	return Encode(w, NewPartitions(t, size))
}

func renderMap(w io.Writer, s *Source) error {
	h, err := s.Library.Look(s.Image)
	if err != nil {
		return err
	}
	err = WriteMap(w, h)
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	return err
}
