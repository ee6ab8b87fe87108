//go:build race

package s3_test

const raceDetector = true // its shadow memory is several times that of the program
