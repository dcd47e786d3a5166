package ops

import (
	"fmt"
	"slices"
)

// Limits of other systems, in bytes.
const (
	azureLeast = 20 << 20
	azureMost  = 32 << 40
	azureUnit  = 1 << 20
	vhdMost    = 2040 << 30
	vhdFooter  = 512
)

// profile is what would be refused elsewhere of image i of a chain, by the profile
// that the request names. What is refused everywhere has been found without it.
func (r *Request) profile(links []Link, i int) []Anomaly {
	switch name := r.Args.Text("Profile"); {
	case links[i].Found.Err != nil:
		return nil
	case name == "azure" && i == 0:
		return azure(links[0].Found)
	case name == "windows":
		var rule Rule
		if i+1 < len(links) {
			rule = links[i+1].Rule
		}
		return windows(links[i].Found, rule)
	}
	return nil
}

// refusals are what would be refused, with the reasons.
type refusals []Anomaly

func (l *refusals) add(refused bool, name, where, format string, args ...any) {
	if refused {
		*l = append(*l, Anomaly{Name: name, Severity: Warning, Where: where, Text: fmt.Sprintf(format, args...)})
	}
}

// azure is what an upload has to be: a fixed VHD in whole MiB, and nothing else in
// the file.
func azure(found *Found) []Anomaly {
	var l refusals
	isVHD := found.Format.Number == FormatVHD
	l.add(!isVHD, "profile.azure.format", "image", "a %s; Azure takes fixed VHDs: convert format=vhd type=fixed", found.Format.Name)
	l.add(isVHD && found.Info.Type != Fixed, "profile.azure.type", "image", "a %s disk; Azure takes fixed ones: convert type=fixed", found.Info.Type)
	l.add(found.Size%azureUnit != 0, "profile.azure.size", "image", "a disk of %d bytes, want whole MiB: %d more", found.Size, azureUnit-found.Size%azureUnit)
	l.add(found.Size < azureLeast || found.Size > azureMost, "profile.azure.limits", "image", "a disk of %d bytes, want %d to %d", found.Size, int64(azureLeast), int64(azureMost))
	l.add(isVHD && found.Info.Type == Fixed && found.Stat.Size != found.Size+vhdFooter, "profile.azure.length", "file",
		"a file of %d bytes, want the disk's %d and a footer of 512", found.Stat.Size, found.Size)
	return l
}

// windows is what Hyper-V refuses. rule is how the parent was found: Windows
// follows recorded paths, in any case, and looks nowhere else.
func windows(found *Found, rule Rule) []Anomaly {
	var l refusals
	own := found.itself()
	isVHD := own.Format.Number == FormatVHD
	isDisk := isVHD || own.Format.Number == FormatVHDX
	holes := own.Stat.Size - own.Stat.Blocks*512
	l.add(isDisk && holes >= 4096, "profile.windows.sparse", "file", "%d bytes of the file are holes; a copy that keeps them is refused there (0xC03A001A): use cp --sparse=never", holes)
	l.add(own.Info.Log == LogReplayed || own.Info.Log == LogEmpty, "profile.windows.log", "log", "the log is %s; it is not attached read-only, and not at all where the log has no valid entry", own.Info.Log)
	l.add(isDisk && own.Size < minDisk, "profile.windows.size", "image", "a disk of %d bytes, want at least %d", own.Size, minDisk)
	l.add(isVHD && own.Size > vhdMost, "profile.windows.size", "image", "a disk of %d bytes, want at most %d", own.Size, int64(vhdMost))
	l.add(isVHD && own.Info.BlockSize != 0 && own.Info.BlockSize != 512<<10 && own.Info.BlockSize != 2<<20, "profile.windows.block", "image",
		"blocks of %d bytes, want 512 KiB or 2 MiB", own.Info.BlockSize)
	ext := extension(own.Ref.Name)
	l.add(!slices.Contains(own.Format.Extensions, ext), "profile.windows.name", "file name", "a %s named %s: the extension says there what a file is", own.Format.Name, ext)
	l.add(rule == RuleName || rule == RuleID, "profile.windows.parent", "parent", "found by %s; it is looked for at the recorded paths alone: set-parent", rule)
	return l
}
