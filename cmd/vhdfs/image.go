package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON for programs, as in the mount"}
}

// withTarget runs do with the IMAGE that the command line names.
func withTarget(c *cli.Context, typed string, do func(target) error) error {
	t, err := openTarget(c, typed)
	if err != nil {
		return err
	}
	return errors.Join(do(t), t.Close())
}

// documentCommand prints one document of an image, for people by way of text.
func documentCommand(name, document string, text func(io.Writer, io.Reader) error) *cli.Command {
	return &cli.Command{
		Name:      name,
		Usage:     "print " + briefOf(document),
		ArgsUsage: "IMAGE",
		Category:  "images",
		Flags:     append(parentFlags(), jsonFlag()),
		Action: func(c *cli.Context) error {
			args, err := positional(c, "IMAGE")
			if err != nil {
				return err
			}
			return withTarget(c, args[0], func(t target) error {
				if c.Bool("json") {
					return t.document(c.App.Writer, document)
				}
				return piped(
					func(w io.Writer) error { return t.document(w, document) },
					func(r io.Reader) error { return text(c.App.Writer, r) })
			})
		},
	}
}

func briefOf(document string) string {
	for _, d := range view.Documents {
		if d.Name == document {
			return d.Brief
		}
	}
	return document
}

// piped lets one function read what another writes, however long it is. The
// writer's own error is the answer where it has one.
func piped(write func(io.Writer) error, read func(io.Reader) error) error {
	r, w := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		err := write(w)
		w.CloseWithError(err)
		wrote <- err
	}()
	err := read(r)
	if err == nil { // a reader of JSON stops at the last brace, before the newline
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(err)
	if werr := <-wrote; werr != nil {
		return werr
	}
	return err
}

// info is what the info command prints as JSON. SettingData is null where
// nothing of the image could be read.
type info struct {
	SettingData *view.SettingData
	State       *view.State
}

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "print settings and state of an image",
		ArgsUsage: "IMAGE",
		Category:  "images",
		Flags:     append(parentFlags(), jsonFlag()),
		Action: func(c *cli.Context) error {
			args, err := positional(c, "IMAGE")
			if err != nil {
				return err
			}
			return withTarget(c, args[0], func(t target) error { return printInfo(c, t) })
		},
	}
}

// printInfo fails with the class of the trouble when the image cannot be read.
func printInfo(c *cli.Context, t target) error {
	in, err := readInfo(t)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = view.Encode(c.App.Writer, in)
	} else {
		err = infoText(c.App.Writer, in)
	}
	if err == nil && in.State.Errno != "" {
		return reported{exitOf(in.State.Errno)}
	}
	return err
}

func readInfo(t target) (*info, error) {
	in := &info{SettingData: &view.SettingData{}, State: &view.State{}}
	if err := decodeDocument(t, "state.json", in.State); err != nil {
		return nil, err
	}
	err := decodeDocument(t, "settings.json", in.SettingData)
	if errors.Is(err, ops.ErrCorrupt) || in.State.Errno != "" && err != nil {
		in.SettingData, err = nil, nil
	}
	return in, err
}

func decodeDocument(t target, name string, v any) error {
	var b bytes.Buffer
	if err := t.document(&b, name); err != nil {
		return err
	}
	if err := json.Unmarshal(b.Bytes(), v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// exitOf is the exit code for an errno's symbol, as answers carry it.
func exitOf(symbol string) int {
	for _, c := range ops.Classes {
		if ops.Errno(c.Err) == symbol {
			return c.Exit
		}
	}
	return 1
}
